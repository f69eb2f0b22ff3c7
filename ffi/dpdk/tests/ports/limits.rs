//! What is closed is gone, and what there is too much of is refused.

use std::sync::{Arc, Mutex, mpsc};
use std::{fs, thread};

use ferrule_dpdk::config::PortConfig;
use ferrule_dpdk::eal::Eal;
use ferrule_dpdk::port::Port;
use ferrule_dpdk::queue::{MoveEnd, MovedFrames};
use ferrule_ffi::span::Span;

use crate::link::{Link, dpdk, frame, in_namespace};

#[test]
fn a_hundred_ports_that_come_and_go_leave_nothing() {
    in_namespace("a_hundred_ports_that_come_and_go_leave_nothing", || {
        let (eal, _turn) = dpdk();
        let mut before = None;
        for round in 0..100 {
            let devargs = ["net_ring7", "net_null7,size=64", "net_tap7,iface=dtap7"][round % 3];
            let mut link = Link::open(eal, devargs, PortConfig::default());
            // A frame that is inside of it when it goes.
            link.send(&frame(64, 1));
            drop(link);
            assert_eq!(eal.ports().len(), 0, "round {round}");
            // What DPDK makes once, it keeps.
            if round == 5 {
                before = Some((held(), eal.pools()));
            }
        }
        assert_eq!(Some((held(), eal.pools())), before);
    });
}

#[test]
fn frames_of_a_closed_port_that_are_still_with_another_keep_their_memory() {
    let (eal, _turn) = dpdk();
    let (mut first, mut second) =
        (Link::open(eal, "net_ring5", PortConfig::default()), Link::open(eal, "net_ring6", PortConfig::default()));
    first.send(&frame(64, 1));
    let (rx, _) = &mut first.queues[0];
    assert!(rx.poll());
    assert_eq!(second.queues[0].1.move_from(rx), MovedFrames { count: 1, bytes: 64, end: MoveEnd::Empty });
    drop(first);
    // Another port may have the pool by now.
    let pools = eal.pools();
    let mut third = Link::open(eal, "net_ring5", PortConfig::default());
    assert_eq!(eal.pools(), pools);
    third.send(&frame(64, 2));
    assert_eq!(second.receive(), (frame(64, 1), 1));
    assert_eq!(third.receive(), (frame(64, 2), 1));
}

#[test]
fn threads_that_served_a_port_before_leave_it_buffers() {
    let (eal, _turn) = dpdk();
    let open = || Link::open(eal, "net_null8,size=64", PortConfig::default());
    let stores = |link: &mut Link| {
        let frame = frame(64, 1);
        let tx = &mut link.queues[0].1;
        tx.store_run(&[Span::from(&*frame); 64]) == 64 && tx.flush()
    };
    let link = Mutex::new(Some(open()));
    thread::scope(|scope| {
        let (served, news) = mpsc::channel();
        // Each is there until the end: another thread would get what it has at hand.
        let mut ends = Vec::new();
        for _ in 0..16 {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let (link, served) = (&link, served.clone());
            scope.spawn(move || {
                if let Some(link) = &mut *link.lock().unwrap() {
                    let (rx, _) = &mut link.queues[0];
                    rx.poll();
                    rx.take(64);
                    rx.release();
                }
                served.send(()).unwrap();
                let _ = ended.recv();
            });
            news.recv().unwrap();
        }
        let mut link = link.lock().unwrap().take().unwrap();
        assert!(stores(&mut link), "the port stays open");
        drop(link);
        assert!(stores(&mut open()), "it is opened anew");
    });
}

#[test]
fn one_port_more_than_dpdk_can_have_is_refused_and_says_so() {
    let (eal, _turn) = dpdk();
    let open = |number| Port::open(eal, &format!("net_null{number},size=64"), &PortConfig::default(), Arc::new(|_| {}));
    let ports: Vec<_> = (0..Eal::ports_max()).map(|number| open(number).unwrap()).collect();
    let error = open(Eal::ports_max()).err().unwrap().to_string();
    assert!(error.contains("there are 32 ports already, as many as this DPDK can have"), "{error}");
    drop(ports);
    drop(open(0).unwrap());
}

/// Descriptors that we have.
fn held() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
