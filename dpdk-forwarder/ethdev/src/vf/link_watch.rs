//! Tells that the PF of a VF was reset, where the VF's driver does not: nobody says so, and what is left is a link that is down and stays so.
//!
//! An unplugged cable looks the same. Opening the VF anew costs nothing then, since no frame could cross, but other devices of the process wait
//! for it: so it is done ever more rarely while the link stays down.

use std::time::{Duration, Instant};

use ferrule_dataplane::port::device_status::LinkState;

/// What is known of the link of one device.
pub(super) struct LinkWatch {
    was_up: bool,
    down_since: Instant,
    /// How long a link that never came up is waited for.
    wait: Duration,
}

impl LinkWatch {
    /// Of a device that has just been opened. `wait`: what the one before it has [left](Self::next_wait).
    pub fn new(now: Instant, wait: Option<Duration>) -> Self {
        Self { was_up: false, down_since: now, wait: wait.unwrap_or(WAIT_MIN) }
    }

    /// Whether the VF is to be opened anew, now that its link is so.
    pub fn is_to_be_opened_anew(&mut self, link: LinkState, now: Instant) -> bool {
        match link {
            LinkState::Down => self.was_up || now.duration_since(self.down_since) >= self.wait,
            LinkState::Up => {
                (self.was_up, self.down_since) = (true, now);
                false
            }
            LinkState::Unknown => {
                self.down_since = now;
                false
            }
        }
    }

    /// How long the device that is opened in place of this one waits.
    pub fn next_wait(&self) -> Duration {
        if self.was_up { WAIT_MIN } else { (2 * self.wait).min(WAIT_MAX) }
    }
}

/// Whether a driver says that the PF was reset (`RTE_ETH_EVENT_INTR_RESET`).
pub(super) fn tells_resets(driver: &str) -> bool {
    TELL_RESETS.contains(&driver)
}

const TELL_RESETS: [&str; 4] = ["net_iavf", "net_ixgbe_vf", "net_hns3_vf", "net_txgbe_vf"];
/// A VF that was opened while its PF was being reset may never have a link.
const WAIT_MIN: Duration = Duration::from_secs(10);
/// What an unplugged cable costs in the end.
const WAIT_MAX: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vf_whose_link_goes_is_opened_anew_at_once_and_one_that_never_had_one_after_a_while() {
        let began = Instant::now();
        let mut link = LinkWatch::new(began, None);
        let mut look = |state, seconds| link.is_to_be_opened_anew(state, began + Duration::from_secs(seconds));
        assert!(!look(LinkState::Down, 1) && !look(LinkState::Down, 9) && look(LinkState::Down, 10));
        assert!(!look(LinkState::Unknown, 31), "we have brought it down");
        assert!(!look(LinkState::Down, 40) && look(LinkState::Down, 41));
        assert!(!look(LinkState::Up, 62) && look(LinkState::Down, 63));
    }

    #[test]
    fn a_vf_without_a_cable_is_opened_ever_more_rarely_until_it_has_a_link() {
        let (mut now, mut wait, mut waits) = (Instant::now(), None, Vec::new());
        for _ in 0..8 {
            let (opened, mut link) = (now, LinkWatch::new(now, wait));
            while !link.is_to_be_opened_anew(LinkState::Down, now) {
                now += Duration::from_secs(1);
            }
            waits.push(now.duration_since(opened).as_secs());
            wait = Some(link.next_wait());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
        let mut link = LinkWatch::new(now, wait);
        assert!(!link.is_to_be_opened_anew(LinkState::Up, now) && link.is_to_be_opened_anew(LinkState::Down, now));
        assert_eq!(link.next_wait(), WAIT_MIN);
    }
}
