//! Who is rung, and when.

use std::os::fd::BorrowedFd;

use ferrule_dataplane::port::vhost_user::features::Features;
use ferrule_dataplane::port::{Frame, Put, Source, Target};
use ferrule_endpoints::virtio::DriverSpec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::pair::{Pair, RX, TX, frame};

const SPEC: DriverSpec = DriverSpec { size: 64, buffer: 256, header_apart: false };

fn kinds() -> impl Iterator<Item = Features> {
    (0..8u8).map(|set| {
        let bits = [Features::RING_PACKED, Features::EVENT_IDX, Features::IN_ORDER];
        let chosen = bits.into_iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
        chosen.fold(Features::VERSION_1, |all, (_, bit)| all | bit)
    })
}

#[test]
fn a_driver_that_polls_is_never_interrupted() {
    for features in kinds() {
        let mut pair = Pair::new(SPEC, features);
        for number in 0..2000 {
            pair.send(&[frame(number, 64)]);
            let turn = pair.turn();
            assert_eq!((turn.frames, turn.interrupts, turn.completions), (1, 0, 0), "{features:x?}, frame {number}");
            assert_eq!(pair.receive().len(), 1);
        }
    }
}

#[test]
fn a_driver_that_sleeps_is_interrupted_for_the_next_frame() {
    for features in kinds() {
        let mut pair = Pair::new(SPEC, features);
        for number in 0..300 {
            pair.driver_rx.enable_notify(true);
            assert!(!pair.driver_rx.refresh().unwrap());
            pair.send(&[frame(number, 64)]);
            assert_eq!(pair.turn().interrupts, 1, "{features:x?}, frame {number}");
            pair.driver_rx.enable_notify(false);
            assert_eq!(pair.receive(), [frame(number, 64)]);
        }
    }
}

#[test]
fn with_an_event_index_only_the_frame_that_it_names_interrupts() {
    let mut pair = Pair::new(SPEC, Features::VERSION_1 | Features::EVENT_IDX);
    pair.driver_rx.enable_notify(true);
    pair.send(&[frame(0, 64)]);
    assert_eq!(pair.turn().interrupts, 1);
    for number in 1..20 {
        pair.send(&[frame(number, 64)]);
        assert_eq!(pair.turn().interrupts, 0, "it was passed with the first frame");
    }
}

#[test]
fn a_device_that_polls_is_not_kicked_and_one_that_sleeps_is() {
    for features in kinds() {
        let mut pair = Pair::new(SPEC, features);
        let one = frame(7, 64);
        let send = |pair: &mut Pair| {
            pair.driver_tx.refresh().unwrap();
            let put = pair.driver_tx.put(&Frame { bytes: one[..].into(), offload: None, slots: 0 });
            assert_eq!(put.unwrap(), Put::Stored);
            pair.driver_tx.publish()
        };
        // An event index begins at 0, which is the first frame.
        send(&mut pair);
        pair.turn();
        pair.receive();
        for number in 0..100 {
            assert!(!send(&mut pair), "{features:x?}: kick {number}");
            pair.turn();
            let (tx, _) = pair.guest();
            tx.enable_notify(true);
            assert!(!tx.refresh().unwrap());
            assert!(send(&mut pair), "{features:x?}: no kick {number}");
            let (tx, _) = pair.guest();
            tx.enable_notify(false);
            pair.turn();
            assert_eq!(pair.receive().len(), 2);
        }
    }
}

#[test]
fn each_side_waits_for_what_the_other_rings() {
    let mut pair = Pair::new(SPEC, Features::VERSION_1);
    let readable =
        |fd: BorrowedFd<'_>| poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1;
    let kick = pair.eventfds[TX].kick.try_clone().unwrap();
    let call = pair.eventfds[RX].call.try_clone().unwrap();
    for eventfd in [&kick, &call] {
        nix::unistd::write(eventfd, &1u64.to_ne_bytes()).unwrap();
    }
    let (tx, rx) = pair.guest();
    assert!(readable(tx.notify_fd().unwrap()));
    assert!(readable(rx.notify_fd().unwrap()));
    assert!(readable(pair.driver_rx.notify_fd().unwrap()));
}

#[test]
fn a_guest_that_waits_for_its_buffers_is_interrupted_when_they_come_back() {
    for features in [Features::VERSION_1, Features::VERSION_1 | Features::RING_PACKED] {
        let mut pair = Pair::new(SPEC, features);
        // The flags that a driver's transmit ring has for interrupts: off, as our driver has them, and on.
        let flags = pair.memory.addresses(TX).avail - pair.memory.row().user;
        let [off, on] = if features.has(Features::RING_PACKED) { [0x1_0000, 0] } else { [1, 0] };
        for (value, completions) in [(off, 0), (on, 1), (off, 0)] {
            let index = pair.memory.region().read_u32(flags).unwrap() & !0xffff;
            let word = if features.has(Features::RING_PACKED) { value } else { index | value };
            pair.memory.region().write_u32(flags, word).unwrap();
            pair.send(&[frame(1, 64)]);
            assert_eq!(pair.turn().completions, completions, "{features:x?}, flags {value}");
        }
    }
}
