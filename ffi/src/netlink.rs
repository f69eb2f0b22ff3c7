//! Requests to the kernel's rtnetlink, many in one system call, and its answers.

use std::fmt;
use std::io;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

/// A netlink socket. It belongs to the namespace it was opened in, whoever uses it, and keeps that
/// namespace alive.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

/// What to ask, and with which flags beside REQUEST and ACK.
pub struct Request {
    /// The question.
    pub message: RouteNetlinkMessage,
    /// Such as `NLM_F_CREATE`.
    pub flags: u16,
}

/// The object asked for, if there is one, or why the kernel said no.
pub type Answer = Result<Option<RouteNetlinkMessage>, NetlinkError>;

/// Why the kernel said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// Its code.
    pub errno: Errno,
    /// The kernel's own words, if it has any for this case.
    pub hint: Option<String>,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        // A refusal then comes with words, and without a copy of the request.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM_MAX) })
    }

    /// Asks one thing.
    pub fn request(&mut self, request: Request) -> Answer {
        self.exchange(vec![request])?.remove(0)
    }

    /// Sends all requests, then reads all answers, which are in the order of the requests. The
    /// kernel goes on behind a request that it refused.
    pub fn exchange(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, NetlinkError> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence;
            let batch = requests.by_ref().take(BATCH_MAX);
            let datagram: Vec<u8> = batch.flat_map(|request| self.encode(request)).collect();
            self.socket.send(&datagram, 0)?;
            answers.extend(self.collect(first)?);
        }
        Ok(answers)
    }

    /// Asks for those objects of a kind that the message describes. A kernel before 4.20 tells all of them: whoever asks has to look.
    pub fn dump_some(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let is_strict = self.socket.set_netlink_get_strict_chk(true).is_ok();
        let found = self.dump(message);
        if is_strict {
            self.socket.set_netlink_get_strict_chk(false)?;
        }
        found
    }

    /// Asks for every object of a kind.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let sequence = self.sequence;
        let datagram = self.encode(Request { message, flags: NLM_F_DUMP });
        self.socket.send(&datagram, 0)?;
        let mut objects = Vec::new();
        loop {
            for message in self.receive()?.into_iter().filter(|message| message.header.sequence_number == sequence) {
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(_) => return Ok(objects),
                    NetlinkPayload::Error(end) => return NetlinkError::parse(&end).map_or(Ok(objects), Err),
                    _ => {}
                }
            }
        }
    }

    fn encode(&mut self, request: Request) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
        header.sequence_number = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request.message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(ALIGNMENT)];
        message.serialize(&mut bytes);
        bytes
    }

    /// The answers to the requests from `first` on. Each ends with an acknowledgement or a refusal.
    fn collect(&mut self, first: u32) -> Result<Vec<Answer>, NetlinkError> {
        let wanted = self.sequence.wrapping_sub(first) as usize;
        let mut answers: Vec<Answer> = vec![Ok(None); wanted];
        let mut ended = 0;
        while ended < wanted {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                // What belongs to no request of ours is left over from an exchange that broke off.
                let Some(answer) = answers.get_mut(index) else { continue };
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => *answer = Ok(Some(object)),
                    NetlinkPayload::Error(end) => {
                        ended += 1;
                        if let Some(refusal) = NetlinkError::parse(&end) {
                            *answer = Err(refusal);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(answers)
    }

    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.received.clear();
        self.socket.recv(&mut self.received, 0)?;
        let mut messages = Vec::new();
        let mut rest = self.received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

impl NetlinkError {
    fn parse(message: &ErrorMessage) -> Option<Self> {
        let code = message.code?.get();
        // Behind the header of the request (NETLINK_CAP_ACK cuts its body) are attributes.
        let attributes = message.header.get(HEADER_LEN..).unwrap_or_default();
        let hint = NlasIterator::new(attributes)
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches(['\0', '.']).to_owned());
        Some(Self { errno: Errno::from_raw(code.saturating_neg()), hint })
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hint {
            Some(hint) => write!(f, "{hint} ({:?})", self.errno),
            None => write!(f, "{} ({:?})", self.errno.desc(), self.errno),
        }
    }
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) => Self { errno: Errno::from_raw(code), hint: None },
            None => Self { errno: Errno::EBADMSG, hint: Some(error.to_string()) },
        }
    }
}

/// So few that their answers fit into the default receive buffer of a socket (208 KiB; an
/// acknowledgement takes about 1 KiB of it).
const BATCH_MAX: usize = 64;
/// The kernel's answer about one link is 2 to 4 KiB, and about 140 bytes more for each of up to 256 VFs.
const DATAGRAM_MAX: usize = 256 << 10;
/// `NLMSG_ALIGNTO` of linux/netlink.h.
const ALIGNMENT: usize = 4;
/// Bytes of a netlink header.
const HEADER_LEN: usize = 16;
/// The text of an extended acknowledgement (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::address::AddressMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    #[test]
    fn a_refusal_carries_the_words_of_the_kernel() {
        let mut message = ErrorMessage::default();
        message.code = NonZeroI32::new(-(Errno::EINVAL as i32));
        message.header = vec![0; HEADER_LEN];
        message.header.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        let refusal = NetlinkError::parse(&message).unwrap();
        assert_eq!(refusal.to_string(), "no (EINVAL)");
        message.header.truncate(3);
        assert_eq!(NetlinkError::parse(&message).unwrap().to_string(), "Invalid argument (EINVAL)");
    }

    #[test]
    fn a_dump_holds_every_link() {
        let links = Netlink::open().unwrap().dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let lo = LinkAttribute::IfName("lo".to_owned());
        let is_lo = |link: &RouteNetlinkMessage| matches!(link, RouteNetlinkMessage::NewLink(link) if link.attributes.contains(&lo));
        assert!(links.iter().any(is_lo), "{links:?}");
    }

    #[test]
    fn some_of_a_kind_are_asked_for_and_no_others_come() {
        let mut netlink = Netlink::open().unwrap();
        let all = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).unwrap();
        let index = |object: &RouteNetlinkMessage| match object {
            RouteNetlinkMessage::NewAddress(address) => Some(address.header.index),
            _ => None,
        };
        let Some(first) = all.iter().find_map(index) else { return println!("skipped: no interface has an address") };
        let mut wanted = AddressMessage::default();
        (wanted.header.family, wanted.header.index) = (AddressFamily::Inet, first);
        let some = netlink.dump_some(RouteNetlinkMessage::GetAddress(wanted)).unwrap();
        assert!(some.iter().all(|object| index(object) == Some(first)), "{some:?}");
        let again = netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).unwrap();
        assert_eq!(again.len(), all.len(), "others are asked for everything again");
    }

    #[test]
    fn answers_come_in_the_order_of_many_requests() {
        let named = |name: &str| {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(name.to_owned()));
            Request { message: RouteNetlinkMessage::GetLink(link), flags: 0 }
        };
        let count = 3 * BATCH_MAX + 1;
        let requests = (0..count).map(|n| named(if n % 3 == 0 { "lo" } else { "no-such-link" }));
        let answers = Netlink::open().unwrap().exchange(requests.collect()).unwrap();
        assert_eq!(answers.len(), count);
        for (n, answer) in answers.iter().enumerate() {
            match answer {
                Ok(Some(RouteNetlinkMessage::NewLink(_))) => assert_eq!(n % 3, 0),
                Err(refusal) => assert_eq!((refusal.errno, n % 3 == 0), (Errno::ENODEV, false)),
                other => panic!("{other:?}"),
            }
        }
    }
}
