//! Labels, and which of them a selector wants.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Names and values.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` have all that `selector` wants. A value of the selector may be a template over the labels `values`, such as
/// `{{.nodeName}}`.
pub fn has_all(labels: &Labels, selector: &Labels, values: &Labels) -> bool {
    labels.len() >= selector.len()
        && selector.iter().all(|(name, wanted)| {
            let found = labels.get(name).map_or("", String::as_str);
            found == wanted || found == expand(wanted, values)
        })
}

/// A value with what its templates stand for. Of Go's templates those that name a label are understood; with any other the text
/// stands for itself, as it does for the Go programs when theirs fails.
fn expand<'a>(text: &'a str, values: &Labels) -> Cow<'a, str> {
    if !text.contains("{{") {
        return Cow::Borrowed(text);
    }
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inside, behind)) = after.split_once("}}") else { return Cow::Borrowed(text) };
        let Some(name) = label_name(inside.trim()) else { return Cow::Borrowed(text) };
        let value = values.get(name).map_or(NO_VALUE, String::as_str);
        if expanded.len() + before.len() + value.len() > EXPANDED_MAX {
            return Cow::Borrowed(text);
        }
        expanded.push_str(before);
        expanded.push_str(value);
        rest = behind;
    }
    expanded.push_str(rest);
    Cow::Owned(expanded)
}

/// The label that `.name` or `index . "name"` names.
fn label_name(action: &str) -> Option<&str> {
    if let Some(name) = action.strip_prefix('.') {
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        return is_name.then_some(name);
    }
    let quoted = action.strip_prefix("index")?.trim_start().strip_prefix('.')?.trim();
    quoted.strip_prefix('"')?.strip_suffix('"').filter(|name| !name.contains(['"', '\\']))
}

/// What Go writes for a label that is not there.
const NO_VALUE: &str = "<no value>";
/// A value that names others many times must not become as long as it likes.
const EXPANDED_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn labels<const N: usize>(labels: [(&str, &str); N]) -> Labels {
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_selector_is_had_in_full_or_not() {
        let pod = labels([("app", "vpn"), ("node", "a")]);
        assert!(has_all(&pod, &labels([]), &pod));
        assert!(has_all(&pod, &labels([("app", "vpn")]), &pod));
        assert!(!has_all(&pod, &labels([("app", "dns")]), &pod));
        assert!(!has_all(&pod, &labels([("app", "vpn"), ("zone", "1")]), &pod));
        assert!(!has_all(&labels([]), &labels([("zone", "")]), &pod));
    }

    #[test]
    fn a_template_stands_for_a_label_of_the_client() {
        let client = labels([("nodeName", "a"), ("k8s.io/x", "y")]);
        for (text, value) in [
            ("{{.nodeName}}", "a"),
            ("n-{{ .nodeName }}-{{.nodeName}}!", "n-a-a!"),
            (r#"{{index . "k8s.io/x"}}"#, "y"),
            ("{{.other}}", "<no value>"),
            ("{{if .nodeName}}x{{end}}", "{{if .nodeName}}x{{end}}"),
            ("{{.nodeName", "{{.nodeName"),
        ] {
            assert_eq!(expand(text, &client), value);
        }
        assert!(has_all(&labels([("node", "a")]), &labels([("node", "{{.nodeName}}")]), &client));
    }

    #[test]
    fn a_template_does_not_grow_without_bound() {
        let client = labels([("long", &"x".repeat(1000))]);
        let text = "{{.long}}".repeat(1000);
        assert_eq!(expand(&text, &client), text);
    }
}
