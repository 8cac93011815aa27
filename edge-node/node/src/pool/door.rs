//! Where further requests come into a kept instance that has some.
//!
//! Whoever runs the instance opens its door in the pool while the guest waits for a request. The next that
//! asks for the version gets a seat, which closes the door again, and joins when its task has its turn. While
//! the guest is at work, those that ask wait a little, because it may soon wait for them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The door of one instance.
#[derive(Debug)]
pub(crate) struct Door<T> {
    joined: RefCell<VecDeque<T>>,
    /// It may open soon.
    hopeful: Cell<bool>,
    /// Seats that were given and not taken yet.
    given: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

/// The right to join an instance.
#[derive(Debug)]
pub(crate) struct Seat<T>(Rc<Door<T>>);

impl<T> Door<T> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Door {
            joined: RefCell::default(),
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
        self.joined.borrow_mut().pop_front()
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
    pub(crate) fn join(self, one: T) {
        self.0.joined.borrow_mut().push_back(one);
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        self.0.given.set(self.0.given.get() - 1);
        self.0.changed();
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
        first.join(1);
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

    fn poll_once(door: &Door<i32>) -> Poll<bool> {
        door.poll_joined(&mut Context::from_waker(Waker::noop()))
    }
}
