//! How numbers and texts from outside are shown.

use std::borrow::Cow;
use std::io::IsTerminal as _;

pub use ferrule_bench::quantity;

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
    fn a_peer_cannot_give_orders_to_the_terminal() {
        assert_eq!(foreign("vpp\x1b[2J"), "vpp\u{fffd}[2J");
        assert_eq!(foreign("vpp 26.06"), "vpp 26.06");
    }
}
