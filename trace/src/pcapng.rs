//! Frames as a file that Wireshark opens: each with its interface, its direction, and what became of it as a comment.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::{PcapNgBlock as _, PcapNgWriteError, PcapNgWriter};
use thiserror::Error;

use crate::line::comment;
use crate::v1::TracedFrame;

/// Writes frames.
pub struct Writer<W: Write>(PcapNgWriter<W>);

/// A frame or the beginning was not written.
#[derive(Debug, Error)]
#[error("write the capture: {0}")]
pub struct WriteError(#[from] PcapNgWriteError);

impl<W: Write> Writer<W> {
    /// Writes the beginning: what the interfaces are called, and what frames begin with.
    pub fn new(out: W, interfaces: &[String], is_ip: bool) -> Result<Self, WriteError> {
        let mut writer = PcapNgWriter::new(out)?;
        for name in interfaces {
            let options = vec![InterfaceDescriptionOption::IfName(Cow::Borrowed(name))];
            let linktype = if is_ip { DataLink::RAW } else { DataLink::ETHERNET };
            writer.write_block(&InterfaceDescriptionBlock { linktype, snaplen: 0, options }.into_block())?;
        }
        Ok(Self(writer))
    }

    /// Writes a frame.
    pub fn write(&mut self, frame: &TracedFrame) -> Result<(), WriteError> {
        let direction = if frame.outbound { OUTBOUND } else { INBOUND };
        let mut options = vec![EnhancedPacketOption::Flags(direction)];
        let comment = comment(frame);
        if !comment.is_empty() {
            options.push(EnhancedPacketOption::Common(CommonOption::Comment(Cow::Owned(comment))));
        }
        let block = EnhancedPacketBlock {
            interface_id: frame.interface,
            // The resolution of an interface that says none is a microsecond.
            timestamp: Duration::from_micros(frame.time_ns / 1000),
            original_len: frame.length.max(frame.bytes.len() as u32),
            data: Cow::Borrowed(&frame.bytes),
            options,
        };
        self.0.write_block(&block.into_block())?;
        Ok(())
    }

    /// Where it is written to.
    pub fn get_mut(&mut self) -> &mut W {
        self.0.get_mut()
    }
}

/// Bits 0 and 1 of a packet's flags.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn what_is_written_is_read_again_with_interface_direction_and_comment() {
        let mut file = Vec::new();
        let names = ["client".to_owned(), "network".to_owned()];
        let frame = TracedFrame {
            time_ns: 1_700_000_000_123_456_789,
            interface: 1,
            outbound: true,
            length: 1500,
            bytes: vec![7; 61],
            dropped: true,
            word: "unmatched".to_owned(),
            ..TracedFrame::default()
        };
        let mut writer = Writer::new(&mut file, &names, false).unwrap();
        writer.write(&frame).unwrap();
        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        let mut seen = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap().0 {
                Block::InterfaceDescription(interface) => {
                    assert_eq!(interface.linktype, DataLink::ETHERNET);
                    seen.push(format!("{:?}", interface.options));
                }
                Block::EnhancedPacket(packet) => {
                    assert_eq!((packet.interface_id, packet.original_len, &*packet.data), (1, 1500, &[7; 61][..]));
                    assert_eq!(packet.timestamp.as_micros(), 1_700_000_000_123_456);
                    seen.push(format!("{:?}", packet.options));
                }
                _ => {}
            }
        }
        let words =
            [vec!["IfName", "client"], vec!["IfName", "network"], vec!["Flags(2)", "Comment", "dropped: unmatched"]];
        assert_eq!(seen.len(), words.len());
        for (seen, words) in seen.iter().zip(words) {
            assert!(words.iter().all(|word| seen.contains(word)), "{seen}");
        }
    }
}
