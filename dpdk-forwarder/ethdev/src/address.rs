//! Addresses of PCI devices.

/// What an end takes that is the PCI device of this address, however it is asked for.
pub(crate) fn pci_identity(address: &str) -> String {
    format!("PCI device {address}")
}

/// A PCI address as the kernel writes it (`0000:3b:02.1`), of one in which the domain may be left out.
pub(crate) fn pci_address(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let whole = if text.len() == SHORT_ADDRESS { format!("0000:{text}") } else { text };
    let is_form = |(place, byte): (usize, &u8)| match place {
        4 | 7 => *byte == b':',
        10 => *byte == b'.',
        11 => (b'0'..=b'7').contains(byte),
        _ => byte.is_ascii_hexdigit(),
    };
    (whole.len() == SHORT_ADDRESS + 5 && whole.bytes().enumerate().all(|(place, byte)| is_form((place, &byte))))
        .then_some(whole)
}

/// Characters of `3b:02.1`.
const SHORT_ADDRESS: usize = 7;
