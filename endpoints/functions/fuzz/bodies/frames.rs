//! Any frames on either side of a function: steps of a byte that says on which side and how much later, a length, and a frame.

use ferrule_functions::Side;

/// Reads the steps, and tells each: side, time, frame.
pub fn each(data: &[u8], mut tell: impl FnMut(Side, u64, Vec<u8>)) {
    let (mut rest, mut now_ms) = (data, 0);
    while let Some((&[how, length], after)) = rest.split_first_chunk() {
        let (frame, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        now_ms += LATER_MS[usize::from(how >> 1) % LATER_MS.len()];
        tell(if how & 1 == 0 { Side::Client } else { Side::Network }, now_ms, frame.to_vec());
    }
}

/// Frames as they are in a chain: who answers whom, parts, errors, IPv6. For a fuzzer to spoil.
pub fn seeds() -> Vec<Vec<u8>> {
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let tcp = |flags| [&[0x9c, 0x40, 0, 80][..], &[0; 8], &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat();
    let back = |flags| [&[0, 80, 0x9c, 0x40][..], &[0; 8], &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat();
    let syn = v4(6, 0, client, server, &tcp(2));
    let error = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &syn[14..]].concat();
    let udp = [0, 9, 0, 53, 0, 24, 0, 0];
    let first = [&udp[..], &[0; 8]].concat();
    vec![
        [
            step(0, &syn),
            step(1, &v4(6, 0, server, client, &back(0x12))),
            step(0, &v4(6, 0, client, server, &tcp(0x11))),
        ]
        .concat(),
        [step(0, &syn), step(1, &v4(1, 0, server, client, &error))].concat(),
        [
            step(0, &v4(1, 0, client, server, &[8, 0, 0, 0, 0, 7, 0, 1])),
            step(1, &v4(1, 0, server, client, &[0, 0, 0, 0, 0, 7, 0, 1])),
        ]
        .concat(),
        [step(0, &v4(17, 0x2000, client, server, &first)), step(0, &v4(17, 2, client, server, &[1; 8]))].concat(),
        [step(0, &v4(17, 2, client, server, &[1; 8])), step(2, &v4(17, 0x2000, client, server, &first))].concat(),
        [step(0, &v6(17, &udp[..])), step(0, &v6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp, &[0; 8]].concat()))]
            .concat(),
        step(1, &[&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat()),
    ]
}

fn step(how: u8, frame: &[u8]) -> Vec<u8> {
    [&[how, frame.len() as u8][..], frame].concat()
}

fn v4(protocol: u8, fragment: u16, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    let start = [0x45, 0, 0, 20 + payload.len() as u8, 0, 9, high, low, 64, protocol, 0, 0];
    [&[2; 12][..], &[8, 0], &start, &from, &to, payload].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, next, 64], &[0xfd; 16], &[0xfe; 16], payload]
        .concat()
}

const LATER_MS: [u64; 4] = [0, 1, 3000, 700_000];
