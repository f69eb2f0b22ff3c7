//! How numbers and texts from outside are shown.

use std::borrow::Cow;
use std::cmp::Ordering;
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

/// Names in the order that a person expects: numbers in them count as numbers, so `w2` comes before `w10`.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        match (left.chars().next(), right.chars().next()) {
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (number, other) = (number(&mut left), number(&mut right));
                // Without leading zeros, the longer number is the larger one.
                let order = number.len().cmp(&other.len()).then_with(|| number.cmp(other));
                if order.is_ne() {
                    return order;
                }
            }
            (Some(x), Some(y)) if x == y => {
                left = &left[x.len_utf8()..];
                right = &right[y.len_utf8()..];
            }
            // Of numbers that differ in zeros only, any order will do as long as it is always the same.
            (None, None) => return a.cmp(b),
            (x, y) => return x.cmp(&y),
        }
    }
}

/// Takes the digits at the front; without leading zeros.
fn number<'a>(text: &mut &'a str) -> &'a str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.trim_start_matches('0')
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
    fn names_come_in_the_order_that_a_person_expects() {
        let mut names = ["w10", "w2b", "w2", "x", "w02", "w", "w1-9", "w1-10", "10", "9"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["9", "10", "w", "w1-9", "w1-10", "w02", "w2", "w2b", "w10", "x"]);
    }

    #[test]
    fn a_peer_cannot_give_orders_to_the_terminal() {
        assert_eq!(foreign("vpp\x1b[2J"), "vpp\u{fffd}[2J");
        assert_eq!(foreign("vpp 26.06"), "vpp 26.06");
    }
}
