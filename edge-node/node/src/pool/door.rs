//! Where further requests come into a kept instance that has some.
//!
//! Whoever runs the instance opens its door in the pool while the guest waits for a request. The next that
//! asks for the version gets a seat, which closes the door again, and joins when its task has its turn. While
//! the guest is at work, those that ask wait a little, because it may soon wait for them. Who has joined and is
//! not taken yet is still its task's to watch, and may leave again.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The door of one instance.
#[derive(Debug)]
pub(crate) struct Door<T> {
    joined: RefCell<VecDeque<Guest<T>>>,
    next_id: Cell<u64>,
    /// It may open soon.
    hopeful: Cell<bool>,
    /// Seats that were given and not taken yet.
    given: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

/// One that has joined.
#[derive(Debug)]
struct Guest<T> {
    id: u64,
    one: T,
    /// Of the task that watches it.
    watcher: Option<Waker>,
}

/// The right to join an instance.
#[derive(Debug)]
pub(crate) struct Seat<T>(Rc<Door<T>>);

/// What has joined, as long as it is not taken.
#[derive(Debug)]
pub(crate) struct Joined<T> {
    door: Rc<Door<T>>,
    id: u64,
}

impl<T> Door<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Door {
            joined: RefCell::default(),
            next_id: Cell::new(0),
            hopeful: Cell::new(false),
            given: Cell::new(0),
            waker: RefCell::default(),
        })
    }

    /// A right to join.
    pub(crate) fn seat(self: &Rc<Self>) -> Seat<T> {
        self.given.set(self.given.get() + 1);
        Seat(self.clone())
    }

    /// Whether it may open soon.
    pub(crate) fn is_hopeful(&self) -> bool {
        self.hopeful.get()
    }

    pub(super) fn set_hopeful(&self, hopeful: bool) {
        self.hopeful.set(hopeful);
    }

    /// The next that has joined.
    pub(crate) fn next(&self) -> Option<T> {
        let Guest { one, watcher, .. } = self.joined.borrow_mut().pop_front()?;
        if let Some(watcher) = watcher {
            watcher.wake();
        }
        Some(one)
    }

    /// How many have joined or may yet.
    pub(crate) fn expected(&self) -> usize {
        self.joined.borrow().len() + self.given.get()
    }

    /// Ready with `true` when one has joined, with `false` while nobody has a seat.
    pub(crate) fn poll_joined(&self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.joined.borrow().is_empty() {
            return Poll::Ready(true);
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        match self.given.get() {
            0 => Poll::Ready(false),
            _ => Poll::Pending,
        }
    }

    fn changed(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<T> Seat<T> {
    /// Takes it.
    pub(crate) fn join(self, one: T) -> Joined<T> {
        let door = &self.0;
        let id = door.next_id.get();
        door.next_id.set(id + 1);
        let watcher = None;
        door.joined
            .borrow_mut()
            .push_back(Guest { id, one, watcher });
        let door = door.clone();
        Joined { door, id }
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        self.0.given.set(self.0.given.get() - 1);
        self.0.changed();
    }
}

impl<T> Joined<T> {
    /// Ready with `false` when the instance has taken it, with `true` when it is still here and `watch` is ready.
    pub(crate) fn poll_left(
        &self,
        cx: &mut Context<'_>,
        watch: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<()>,
    ) -> Poll<bool> {
        let mut joined = self.door.joined.borrow_mut();
        let Some(guest) = joined.iter_mut().find(|guest| guest.id == self.id) else {
            return Poll::Ready(false);
        };
        guest.watcher = Some(cx.waker().clone());
        watch(&mut guest.one, cx).map(|()| true)
    }

    /// Takes it back, if the instance has not taken it.
    pub(crate) fn withdraw(self) -> Option<T> {
        self.take_back()
    }

    fn take_back(&self) -> Option<T> {
        let one = {
            let mut joined = self.door.joined.borrow_mut();
            let at = joined.iter().position(|guest| guest.id == self.id)?;
            joined.remove(at)?.one
        };
        self.door.changed();
        Some(one)
    }
}

/// What nobody watches any more does not stay.
impl<T> Drop for Joined<T> {
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_seat_is_waited_for_until_it_joins_or_does_not() {
        let door = Door::new();
        let (first, second) = (door.seat(), door.seat());
        assert_eq!((door.expected(), door.next()), (2, None));
        let _taken = first.join(1);
        assert_eq!(
            (door.expected(), door.next(), door.next()),
            (2, Some(1), None)
        );
        let mut joined = poll_once(&door);
        assert!(joined.is_pending());
        drop(second);
        joined = poll_once(&door);
        assert_eq!(joined, Poll::Ready(false));
        assert_eq!(door.expected(), 0);
    }

    #[test]
    fn who_has_joined_may_leave_until_it_is_taken() {
        let door = Door::new();
        let cx = &mut Context::from_waker(Waker::noop());
        let (one, two) = (door.seat().join(1), door.seat().join(2));
        let stays = |_: &mut i32, _: &mut Context<'_>| Poll::Pending;
        let goes = |_: &mut i32, _: &mut Context<'_>| Poll::Ready(());
        assert_eq!(one.poll_left(cx, stays), Poll::Pending);
        assert_eq!(one.poll_left(cx, goes), Poll::Ready(true));
        assert_eq!(one.withdraw(), Some(1));
        assert_eq!((door.expected(), door.next()), (1, Some(2)));
        // Its watcher has nothing to watch any more.
        assert_eq!(two.poll_left(cx, stays), Poll::Ready(false));
        assert_eq!((two.withdraw(), door.expected()), (None, 0));
    }

    fn poll_once(door: &Door<i32>) -> Poll<bool> {
        door.poll_joined(&mut Context::from_waker(Waker::noop()))
    }
}
