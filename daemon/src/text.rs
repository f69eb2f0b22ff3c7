//! Words of logs and of messages.

/// A number of things: `1 wire`, `2 wires`.
pub fn counted(number: usize, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_has_no_plural() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "PF")), ["0 PFs", "1 PF", "2 PFs"]);
    }
}
