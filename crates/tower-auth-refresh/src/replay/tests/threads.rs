//! Under loom: a connection polls the attempt on one thread while a caller uses the handle on another, in every
//! interleaving. A lost wake-up shows as a deadlock.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p tower-auth-refresh --lib --release --target-dir target/loom replay::tests
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use loom::thread::{self, Thread};

use crate::replay::{ReplayBody, Superseded};

/// A body that yields its frames and then ends or stays pending.
struct Source {
    frames: std::vec::IntoIter<&'static str>,
    ends: bool,
}

fn source(frames: &[&'static str], ends: bool) -> Source {
    Source { frames: frames.to_vec().into_iter(), ends }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.next() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(frame.as_bytes()))))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[derive(Debug, PartialEq)]
enum Last {
    End,
    Superseded,
}

/// Polls to the end, and parks the thread while the body is pending.
fn run(mut body: ReplayBody<Source>) -> (String, Last) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut sent = String::new();
    loop {
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(Ok(frame))) => sent += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
            Poll::Ready(Some(Err(error))) => {
                assert!(error.is::<Superseded>());
                return (sent, Last::Superseded);
            }
            Poll::Ready(None) => return (sent, Last::End),
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_steal_loses_and_duplicates_no_frame() {
    for pause in [false, true] {
        loom::model(move || {
            let (attempt, mut handle) = ReplayBody::recording(source(&["1", "2"], true), 10);
            let connection = thread::spawn(move || run(attempt));
            if pause {
                handle.pause().unwrap();
            }
            let replay = handle.into_replay().unwrap();
            assert_eq!(run(replay), ("12".to_owned(), Last::End));
            match connection.join().unwrap() {
                (sent, Last::Superseded) => assert!("12".starts_with(&sent)),
                (sent, Last::End) => assert_eq!(sent, "12"),
            }
        });
    }
}

#[test]
fn a_superseded_attempt_that_waits_for_its_source_is_woken() {
    for pause in [false, true] {
        loom::model(move || {
            let (attempt, mut handle) = ReplayBody::recording(source(&["1"], false), 10);
            let connection = thread::spawn(move || run(attempt));
            if pause {
                handle.pause().unwrap();
            }
            drop(handle.into_replay().unwrap());
            let (sent, last) = connection.join().unwrap();
            assert!("1".starts_with(&sent));
            assert_eq!(last, Last::Superseded);
        });
    }
}

#[test]
fn a_paused_attempt_continues_when_it_is_resumed() {
    loom::model(|| {
        let (attempt, mut handle) = ReplayBody::recording(source(&["1", "2"], true), 10);
        let connection = thread::spawn(move || run(attempt));
        handle.pause().unwrap();
        handle.resume();
        assert_eq!(connection.join().unwrap(), ("12".to_owned(), Last::End));
    });
}

#[test]
fn a_handle_that_is_dropped_while_the_attempt_is_polled_does_not_affect_the_attempt() {
    loom::model(|| {
        let (attempt, handle) = ReplayBody::recording(source(&["1", "2"], true), 10);
        let connection = thread::spawn(move || run(attempt));
        drop(handle);
        assert_eq!(connection.join().unwrap(), ("12".to_owned(), Last::End));
    });
}

#[test]
fn past_the_limit_either_the_steal_or_the_attempt_gets_the_source() {
    loom::model(|| {
        let (attempt, handle) = ReplayBody::recording(source(&["1", "2"], true), 1);
        let connection = thread::spawn(move || run(attempt));
        let replay = handle.into_replay().map(run);
        let (sent, last) = connection.join().unwrap();
        if let Ok(replay) = replay {
            assert_eq!(replay, ("12".to_owned(), Last::End));
            assert!("1".starts_with(&sent));
            assert_eq!(last, Last::Superseded);
        } else {
            assert_eq!((sent.as_str(), last), ("12", Last::End));
        }
    });
}

#[test]
fn a_connection_that_drops_the_attempt_leaves_the_source_to_the_replay() {
    loom::model(|| {
        let (mut attempt, handle) = ReplayBody::recording(source(&["1", "2"], true), 10);
        let connection = thread::spawn(move || {
            let frame = Pin::new(&mut attempt).poll_frame(&mut Context::from_waker(Waker::noop()));
            drop((frame, attempt));
        });
        let replay = handle.into_replay().unwrap();
        assert_eq!(run(replay), ("12".to_owned(), Last::End));
        connection.join().unwrap();
    });
}

#[test]
fn attempt_and_handle_may_be_dropped_concurrently() {
    loom::model(|| {
        let (attempt, handle) = ReplayBody::recording(source(&["1"], true), 10);
        let connection = thread::spawn(move || drop(attempt));
        drop(handle);
        connection.join().unwrap();
    });
}
