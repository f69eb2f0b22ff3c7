//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::io;

use comfy_table::{ContentArrangement, Table, presets};

use super::DoctorReport;
use super::finding::{Cure, Verdict};

/// A table, what to do about what is not as it should be, and the kernel arguments together.
pub fn text(report: &DoctorReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["CHECK", "OF", "", "IS", "SHOULD BE"]);
    for finding in &report.findings {
        let subject = finding.subject.as_deref().unwrap_or_default();
        table.add_row([finding.check, subject, finding.verdict.word(), &finding.is, &finding.should_be]);
    }
    let mut text = lines(&table);
    let wrong = || report.findings.iter().filter(|finding| finding.verdict >= Verdict::Warning);
    if wrong().next().is_some() {
        text += "\nTo change:\n";
    }
    for finding in wrong() {
        let subject = finding.subject.as_ref().map(|subject| format!(" of {subject}")).unwrap_or_default();
        let _ = writeln!(text, "  {}{subject}", finding.check);
        for cure in finding.cures.iter().filter(|cure| !matches!(cure, Cure::KernelArgument(_))) {
            let _ = writeln!(text, "    {}", cure.text());
        }
        let arguments: Vec<_> = finding.cures.iter().filter(|cure| matches!(cure, Cure::KernelArgument(_))).collect();
        if !arguments.is_empty() {
            let words = arguments.iter().map(|cure| cure.text().replace("kernel argument ", "")).collect::<Vec<_>>();
            let _ = writeln!(text, "    kernel arguments: {}", words.join(" "));
        }
    }
    if !report.kernel_arguments.is_empty() {
        let arguments = report.kernel_arguments.join(" ");
        let _ = write!(
            text,
            "\nAll kernel arguments (Debian):\n  # echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {arguments}\"' >/etc/default/grub.d/ferrule.cfg\n  # update-grub && reboot\n"
        );
    }
    text
}

/// An object with every finding.
pub fn json(report: &DoctorReport) -> io::Result<String> {
    serde_json::to_string_pretty(report).map_err(io::Error::other)
}

/// Without the spaces at the ends of lines.
fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
