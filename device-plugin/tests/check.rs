//! `device-plugin --check` as a person meets it: exit codes, and what it prints.

#![allow(clippy::unwrap_used, reason = "it is a test")]

use std::fs;
use std::process::Command;

#[test]
fn its_exit_code_tells_a_good_file_from_one_that_loses_a_resource_and_from_none() {
    let (good, lost) = (
        r#"{"resourceName": "a", "selectors": {"pfNames": ["ens1f0"]}}"#,
        r#"{"resourceName": "b", "selectors": {"pfNames": "ens1f0"}}"#,
    );
    let wrong = r#"{"resourceName": "b c", "selectors": {}}"#;
    for (entries, code, last, warnings, errors) in [
        (vec![good], 0, ": 1 resource", 0, 0),
        (vec![good, lost], 65, ": 1 of 2 resources left out: b (line 3)", 1, 0),
        (vec![lost, wrong], 64, "", 1, 1),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, format!("{{\"resourceList\": [\n{}\n]}}", entries.join(",\n"))).unwrap();
        let checked =
            Command::new(env!("CARGO_BIN_EXE_device-plugin")).arg("--config-file").arg(&path).arg("--check").output();
        let checked = checked.unwrap();
        let (out, err) = (String::from_utf8(checked.stdout).unwrap(), String::from_utf8(checked.stderr).unwrap());
        assert_eq!(checked.status.code(), Some(code), "{out}{err}");
        let count = |text: &str, head: &str| text.lines().filter(|line| line.starts_with(head)).count();
        assert_eq!((count(&out, "warning: "), count(&err, "error: ")), (warnings, errors), "{out}{err}");
        assert_eq!(err.lines().count(), errors, "{err}");
        assert!(last.is_empty() || out.trim_end().ends_with(last), "{out}");
    }
}
