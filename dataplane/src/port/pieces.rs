//! Frames that lie in several pieces of memory, copied from there to where they go.

use arrayvec::ArrayVec;
use ferrule_ffi::span::{Span, SpanMut};

/// The pieces of a frame in their order, none of them empty.
pub type Pieces<'a> = ArrayVec<Span<'a>, PIECES_MAX>;

/// What is left to copy of a frame in pieces.
pub struct PieceReader<'a> {
    /// What is left of the piece that is being copied.
    piece: Span<'a>,
    /// Those behind it.
    later: &'a [Span<'a>],
    len: usize,
}

impl<'a> PieceReader<'a> {
    /// From the first byte on.
    #[inline]
    pub fn new(pieces: &'a [Span<'a>]) -> Self {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        let (piece, later) =
            pieces.split_first().map_or((Span::from(&[][..]), pieces), |(first, later)| (*first, later));
        Self { piece, later, len }
    }

    /// Bytes that are left.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none are left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `room` with the next bytes; `false`, if fewer are left.
    #[inline]
    #[must_use]
    pub fn fill(&mut self, mut room: SpanMut<'_>) -> bool {
        while !room.is_empty() {
            let len = self.piece.len().min(room.len());
            let (Some(next), Some(rest)) = (self.piece.head(len), self.piece.tail(len)) else { return false };
            if !next.copy_to(&mut room) {
                return false;
            }
            let Some(behind) = room.tail(len) else { return false };
            (room, self.piece) = (behind, rest);
            self.len -= len;
            if rest.is_empty() {
                let Some((piece, later)) = self.later.split_first() else { break };
                (self.piece, self.later) = (*piece, later);
            }
        }
        room.is_empty()
    }
}

/// Pieces of one frame that are copied one by one; one of more is put together first.
pub const PIECES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fill_rooms_of_any_length() {
        let bytes: Vec<u8> = (0..100).collect();
        for cut in 1..100 {
            let pieces: Pieces<'_> = bytes.chunks(cut.max(2)).map(Span::from).collect();
            for room in 1..=100 {
                let (mut reader, mut copied) = (PieceReader::new(&pieces), Vec::new());
                while !reader.is_empty() {
                    let mut next = vec![0; room.min(reader.len())];
                    assert!(reader.fill(SpanMut::from(&mut next[..])));
                    copied.extend(next);
                }
                assert!(copied == bytes, "{cut} {room}");
                assert!(!reader.fill(SpanMut::from(&mut [0][..])));
            }
        }
    }
}
