//! How numbers and texts from outside are shown.

use std::borrow::Cow;
use std::io::IsTerminal as _;

/// A count with its thousands set apart: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A quantity in three digits with a decimal prefix: `12.3 M` and the unit.
pub fn quantity(number: f64, unit: &str) -> String {
    let mut scaled = number.max(0.0);
    let mut prefix = "";
    for larger in ["k", "M", "G", "T", "P", "E"] {
        // 999.5 would be shown as 1000.
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        prefix = larger;
    }
    let decimals = match scaled {
        _ if prefix.is_empty() && (scaled.fract() == 0.0 || scaled >= 99.5) => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$} {prefix}{unit}").trim_end().to_owned()
}

/// A text that a peer may have chosen: control characters would be orders to the terminal, and are shown instead.
pub fn foreign(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Whether standard output is a terminal whose owner likes colours (<https://no-color.org>).
pub fn colour_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_has_its_thousands_set_apart() {
        let texts = [0, 7, 999, 1000, 1_234_567, u64::MAX].map(count);
        assert_eq!(texts, ["0", "7", "999", "1,000", "1,234,567", "18,446,744,073,709,551,615"]);
    }

    #[test]
    fn a_quantity_has_three_digits_and_a_prefix() {
        let texts =
            [0.0, 5.0, 0.25, 42.5, 999.4, 999.6, 1000.0, 14_880_952.0, 9.995e9, 1e10].map(|n| quantity(n, "b/s"));
        assert_eq!(
            texts,
            [
                "0 b/s",
                "5 b/s",
                "0.25 b/s",
                "42.5 b/s",
                "999 b/s",
                "1.00 kb/s",
                "1.00 kb/s",
                "14.9 Mb/s",
                "10.0 Gb/s",
                "10.0 Gb/s"
            ]
        );
        assert_eq!(quantity(14_880_952.0, ""), "14.9 M");
    }

    #[test]
    fn a_peer_cannot_give_orders_to_the_terminal() {
        assert_eq!(foreign("vpp\x1b[2J"), "vpp\u{fffd}[2J");
        assert_eq!(foreign("vpp 26.06"), "vpp 26.06");
    }
}
