//! How large numbers are shown.

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
