//! Which descriptor ids are free, and which belong together.

use ferrule_dataplane::port::Fault;

/// The ids of a ring. They are given out in the order in which they came back.
pub(super) struct Ids {
    /// A queue: those from `head` to `tail` are free.
    free: Box<[u16]>,
    head: u32,
    tail: u32,
    /// Of the first id of a group that is out: how many ids it has. Of others, and of free ones, 0.
    counts: Box<[u16]>,
    /// The next id of the group.
    links: Box<[u16]>,
}

impl Ids {
    pub(super) fn new(size: u32) -> Self {
        // At most 2^15 ids. The queue is of a length that positions, which run freely, can be masked with.
        let free = (0..size.next_power_of_two()).map(|id| id as u16).collect();
        let zeros = || vec![0; size as usize].into_boxed_slice();
        Self { free, head: 0, tail: size, counts: zeros(), links: zeros() }
    }

    /// How many are free.
    #[inline(always)]
    pub(super) fn free(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// The id that is given out `distance` after the next one, if so many are free.
    #[inline(always)]
    pub(super) fn nth(&self, distance: u32) -> Option<u16> {
        (distance < self.free()).then(|| self.ahead(distance))
    }

    /// The same where it is known to be free.
    #[inline(always)]
    pub(super) fn ahead(&self, distance: u32) -> u16 {
        self.free[self.place(self.head.wrapping_add(distance))]
    }

    /// Gives out the next `count` ids, which belong together and are all free; the first one stands for them.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u16) -> u16 {
        let first = self.ahead(0);
        for distance in 1..count.into() {
            let (id, next) = (self.ahead(distance - 1), self.ahead(distance));
            self.links[usize::from(id)] = next;
        }
        self.counts[usize::from(first)] = count;
        self.head = self.head.wrapping_add(count.into());
        first
    }

    /// Gives out the next `count` ids, as far as they are free, each for itself. How many.
    #[inline(always)]
    pub(super) fn take_each(&mut self, count: u32) -> u16 {
        let count = count.min(self.free());
        for distance in 0..count {
            let id = self.ahead(distance);
            self.counts[usize::from(id)] = 1;
        }
        self.head = self.head.wrapping_add(count);
        // There are at most 2^15 ids.
        count as u16
    }

    /// Takes back the ids that `first` stands for.
    #[inline(always)]
    pub(super) fn give(&mut self, first: u16) -> Result<(), Fault> {
        let count = self.counts.get_mut(usize::from(first)).map_or(0, std::mem::take);
        if count == 0 {
            let size = self.counts.len() as u32;
            return Err(Fault::Head { entry: self.tail % size, head: first.into(), size });
        }
        let mut id = first;
        for _ in 0..count {
            let place = self.place(self.tail);
            self.free[place] = id;
            self.tail = self.tail.wrapping_add(1);
            id = self.links[usize::from(id)];
        }
        Ok(())
    }

    #[inline(always)]
    fn place(&self, position: u32) -> usize {
        position as usize & (self.free.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_in_groups_and_are_given_out_in_that_order() {
        let mut ids = Ids::new(5);
        assert_eq!((ids.take(2), ids.take(1), ids.free()), (0, 2, 2));
        ids.give(2).unwrap();
        ids.give(0).unwrap();
        assert_eq!((0..ids.free()).map(|at| ids.ahead(at)).collect::<Vec<_>>(), [3, 4, 2, 0, 1]);
    }

    #[test]
    fn an_id_that_is_not_out_is_a_lie() {
        let mut ids = Ids::new(4);
        for id in [0, 4, u16::MAX] {
            assert_eq!(ids.give(id), Err(Fault::Head { entry: 0, head: id.into(), size: 4 }));
        }
        ids.take(3);
        assert!(ids.give(1).is_err(), "one of a group");
        ids.give(0).unwrap();
        assert!(ids.give(0).is_err(), "twice");
    }

    #[test]
    fn ids_go_round_for_ever() {
        let mut ids = Ids::new(3);
        ids.head = u32::MAX - 7;
        ids.tail = ids.head + 3;
        let order: Vec<_> = (0..3).map(|at| ids.ahead(at)).collect();
        for round in 0..20 {
            assert_eq!(ids.take(1), order[round % 3]);
            ids.give(order[round % 3]).unwrap();
        }
    }
}
