use std::collections::HashSet;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::marker::PhantomPinned;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use tower::BoxError;

use super::fixture::*;
use crate::replay::{NotReplayable, OnePiece, Replay, ReplayBody, ReplayLimit, Superseded};

const LIMIT: usize = ReplayLimit::DEFAULT.0;

fn wait(gate: &Gate) -> Step {
    Step::Wait(gate.clone())
}

fn chunk(chunk: &'static str) -> Step {
    Step::Data(Bytes::from_static(chunk.as_bytes()))
}

/// The framing of a body: end and exact length before the first frame and after each.
fn framing<B>(body: &mut B) -> Vec<(bool, Option<u64>, Option<Seen>)>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: ToString,
{
    let task = Task::new();
    let mut framing = vec![(body.is_end_stream(), body.size_hint().exact(), None)];
    while !body.is_end_stream() {
        let seen = poll(body, &task);
        let more = matches!(seen, Seen::Data(_) | Seen::Trailers(_));
        framing.push((body.is_end_stream(), body.size_hint().exact(), Some(seen)));
        if !more {
            break;
        }
    }
    framing
}

// The content of a replay

#[test]
fn a_replay_body_is_no_larger_than_bytes() {
    assert_eq!(size_of::<ReplayBody<Full<Bytes>>>(), size_of::<Bytes>());
    assert_eq!(size_of::<ReplayBody<[u8; 1024]>>(), size_of::<Bytes>());
}

#[test]
fn an_empty_body_is_replayed_as_it_was_framed() {
    for source in [Script::new([]).reports_end(), Script::new([]).reports_end().exact()] {
        let size = bounds(&source);
        let (attempt, mut handle) = ReplayBody::recording(source, 0);
        assert!(attempt.is_end_stream());
        assert_eq!(bounds(&attempt), size);
        assert_eq!(handle.pause(), Ok(()));
        let mut replay = handle.into_replay().unwrap();
        assert!(replay.is_end_stream());
        assert_eq!(bounds(&replay), size);
        assert_eq!(drain(&mut replay), [Seen::End]);
    }
    let (_, handle) = ReplayBody::recording(Empty::<Bytes>::new(), 0);
    assert!(handle.into_replay().is_ok());
}

#[test]
fn a_full_body_is_replayed_from_the_same_memory() {
    fn check<B: Body<Error = Infallible> + Unpin + 'static>(body: B) {
        let (mut attempt, mut handle) = ReplayBody::recording(body, 7);
        assert_eq!(bounds(&attempt), (7, Some(7)));
        let first = framing(&mut attempt);
        assert_eq!(first, [(false, Some(7), None), (true, Some(0), Some(data("{\"a\":1}")))]);
        assert_eq!(handle.pause(), Ok(()));
        let second = framing(&mut handle.into_replay().unwrap());
        assert_eq!(first, second);
        assert!(same_memory(first[1].2.as_ref().unwrap(), second[1].2.as_ref().unwrap()));
    }
    check(Full::new(Bytes::from("{\"a\":1}".to_owned())));
    check("{\"a\":1}".to_owned());
    check(Full::new(Bytes::from("{\"a\":1}".to_owned())).boxed());
    check(Full::new(Bytes::from("{\"a\":1}".to_owned())).boxed_unsync());
}

#[test]
fn a_body_that_is_kept_whole_is_sent_while_it_is_paused_and_still_replayed() {
    fn check<B: Body<Error = Infallible> + Unpin + 'static>(body: B) {
        let (mut attempt, mut handle) = ReplayBody::recording(body, LIMIT);
        assert_eq!(handle.pause(), Ok(()));
        assert_eq!(drain(&mut attempt), [data("whole"), Seen::End]);
        assert_eq!(drain(&mut handle.into_replay().unwrap()), [data("whole"), Seen::End]);
    }
    check(Full::new(Bytes::from_static(b"whole")));
    check("whole".to_owned());
}

#[test]
fn a_body_is_lost_once_more_of_it_was_sent_than_is_kept() {
    assert_eq!(ReplayBody::recording(Empty::<Bytes>::new(), 0).1.pause(), Ok(()));
    assert_eq!(ReplayBody::recording("whole".to_owned(), LIMIT).1.pause(), Ok(()));
    assert_eq!(ReplayBody::recording("too long".to_owned(), 7).1.pause(), Err(NotReplayable::TooLarge));
    for (chunks, lost) in [(0, false), (1, false), (2, true)] {
        let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1", "22"]), 2);
        let task = Task::new();
        for chunk in ["1", "22"].into_iter().take(chunks) {
            assert_eq!(poll(&mut attempt, &task), data(chunk));
        }
        assert_eq!(handle.pause(), if lost { Err(NotReplayable::TooLarge) } else { Ok(()) });
    }
}

#[test]
fn each_reason_not_to_replay_has_its_own_message() {
    let reasons =
        [NotReplayable::TooLarge, NotReplayable::SourceFailed, NotReplayable::UnknownFrame, NotReplayable::Head];
    let words: HashSet<_> = reasons.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), reasons.len());
    assert!(words.iter().all(|words| words.starts_with("the request") || words.starts_with("more of the request")));
}

#[test]
fn chunks_keep_their_boundaries_and_their_memory_on_both_attempts() {
    let chunks = ["one", "two", "and a third that is longer"].map(|chunk| Bytes::from(chunk.to_owned()));
    let (mut attempt, handle) = ReplayBody::recording(Script::new(chunks.clone().map(Step::Data)), LIMIT);
    let (first, mut replay) = (drain(&mut attempt), handle.into_replay().unwrap());
    let second = drain(&mut replay);
    assert_eq!(first, [chunks.clone().map(Seen::Data).to_vec(), vec![Seen::End]].concat());
    assert_eq!(first, second);
    for (chunk, (first, second)) in chunks.iter().zip(first.iter().zip(&second)) {
        let source = Seen::Data(chunk.clone());
        assert!(same_memory(&source, first) && same_memory(&source, second));
    }
}

#[test]
fn trailers_are_replayed_alone_and_after_data() {
    for script in [
        || Script::new([Step::Trailers(trailers())]),
        || Script::new([chunk("data"), Step::Trailers(trailers())]),
        || Script::new([chunk("data"), Step::Trailers(trailers())]).reports_end(),
        || Script::new([chunk("data"), Step::Trailers(trailers())]).exact(),
    ] {
        let (mut attempt, handle) = ReplayBody::recording(script(), LIMIT);
        let first = framing(&mut attempt);
        assert!(first.iter().any(|(_, _, seen)| *seen == Some(Seen::Trailers(trailers()))));
        assert_eq!(framing(&mut handle.into_replay().unwrap()), first);
    }
}

#[test]
fn length_and_end_are_the_same_at_each_step_of_both_attempts() {
    let chunks = || Script::chunks(["1", "22", "333"]);
    for (script, exact, reports_end) in [
        (chunks(), false, false),
        (chunks().exact(), true, false),
        (chunks().reports_end(), false, true),
        (chunks().exact().reports_end(), true, true),
    ] {
        let (mut attempt, handle) = ReplayBody::recording(script, LIMIT);
        let first = framing(&mut attempt);
        let size = |size| exact.then_some(size);
        let last = if reports_end { Some(0) } else { size(0) };
        let mut expected = vec![
            (false, size(6), None),
            (false, size(5), Some(data("1"))),
            (false, size(3), Some(data("22"))),
            (reports_end, last, Some(data("333"))),
        ];
        if !reports_end {
            expected.push((true, Some(0), Some(Seen::End)));
        }
        assert_eq!(first, expected);
        assert_eq!(framing(&mut handle.into_replay().unwrap()), first);
    }
}

#[test]
fn a_body_that_turns_out_to_be_empty_has_the_same_framing_on_the_replay() {
    // A chunked body, for instance: the replay, too, must neither have ended before the first poll nor have a length.
    let (mut attempt, handle) = ReplayBody::recording(Script::new([]), LIMIT);
    let first = framing(&mut attempt);
    assert_eq!(first, [(false, None, None), (true, Some(0), Some(Seen::End))]);
    assert_eq!(framing(&mut handle.into_replay().unwrap()), first);
}

#[test]
fn a_source_that_ends_without_a_poll_does_not_change_the_framing() {
    struct Ending(Arc<AtomicUsize>);
    impl Body for Ending {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(None)
        }
        fn is_end_stream(&self) -> bool {
            self.0.load(Ordering::SeqCst) == 1
        }
        fn size_hint(&self) -> SizeHint {
            if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let (attempt, handle) = ReplayBody::recording(Ending(Arc::clone(&ended)), LIMIT);
    assert_eq!((attempt.is_end_stream(), attempt.size_hint().exact()), (false, None));
    ended.store(1, Ordering::SeqCst);
    assert_eq!((attempt.is_end_stream(), attempt.size_hint().exact()), (false, None));
    let mut replay = handle.into_replay().unwrap();
    assert_eq!((replay.is_end_stream(), replay.size_hint().exact()), (false, None));
    assert_eq!(drain(&mut replay), [Seen::End]);
}

// The limit

#[test]
fn a_body_exactly_at_the_limit_is_replayed_and_one_byte_over_is_not() {
    for script in [|| Script::chunks(["1234", "56"]), || Script::chunks(["1234", "56"]).exact()] {
        let all = [data("1234"), data("56"), Seen::End];
        let (mut attempt, handle) = ReplayBody::recording(script(), 6);
        assert_eq!(drain(&mut attempt), all);
        assert_eq!(drain(&mut handle.into_replay().unwrap()), all[..]);

        let (mut attempt, mut handle) = ReplayBody::recording(script(), 5);
        assert_eq!(drain(&mut attempt), all);
        assert_eq!(handle.pause(), Err(NotReplayable::TooLarge));
        assert_eq!(handle.into_replay().err(), Some(NotReplayable::TooLarge));
    }
}

#[test]
fn the_default_limit_is_64_kib() {
    assert_eq!((ReplayLimit::default().0, ReplayLimit::DEFAULT.0), (65_536, 65_536));
}

#[test]
fn a_full_body_over_the_limit_streams_through() {
    let (mut attempt, mut handle) = ReplayBody::recording(Full::new(Bytes::from_static(b"123")), 2);
    assert_eq!(handle.pause(), Err(NotReplayable::TooLarge));
    assert_eq!(attempt.size_hint().exact(), Some(3));
    assert_eq!(drain(&mut attempt), [data("123"), Seen::End]);
}

#[test]
fn trailers_count_towards_the_limit() {
    let script = || Script::new([chunk("12"), Step::Trailers(trailers())]);
    let size = 2 + "grpc-status".len() + "0".len();
    for (limit, replayable) in [(size, true), (size - 1, false)] {
        let (mut attempt, handle) = ReplayBody::recording(script(), limit);
        assert_eq!(drain(&mut attempt), [data("12"), Seen::Trailers(trailers()), Seen::End]);
        assert_eq!(handle.into_replay().is_ok(), replayable);
    }
}

#[test]
fn past_the_limit_the_record_is_freed_and_the_attempt_owns_the_source() {
    let owned = Owned::default();
    let source = Script::new([owned.data("12"), owned.data("34"), chunk("5"), chunk("6")]).exact();
    let (mut attempt, mut handle) = ReplayBody::recording(source.size(SizeHint::default()), 3);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("12"));
    assert_eq!(owned.alive(), 2);
    assert_eq!(poll(&mut attempt, &task), data("34"));
    assert_eq!(owned.alive(), 0);
    assert_eq!(handle.pause(), Err(NotReplayable::TooLarge));
    assert_eq!(handle.into_replay().err(), Some(NotReplayable::TooLarge));
    assert_eq!(drain(&mut attempt), [data("5"), data("6"), Seen::End]);
}

// A steal during the upload

#[test]
fn a_replay_during_the_upload_sends_the_record_and_then_the_remainder() {
    let script = || Script::chunks(["1", "22", "333", "4444"]).exact();
    let whole = framing(&mut script());
    for sent in 0..4 {
        let (mut attempt, mut handle) = ReplayBody::recording(script(), LIMIT);
        let task = Task::new();
        for _ in 0..sent {
            assert!(matches!(poll(&mut attempt, &task), Seen::Data(_)));
        }
        handle.pause().unwrap();
        assert_eq!(poll(&mut attempt, &task), Seen::Pending);
        let mut replay = handle.into_replay().unwrap();
        assert_eq!(replay.size_hint().exact(), Some(10), "the Content-Length after {sent} frames");
        let framing = framing(&mut replay);
        assert_eq!(framing[..5], whole[..5], "{sent} frames");
        assert_eq!(framing[5].2, Some(Seen::End));
        assert_eq!(poll(&mut attempt, &task), superseded());
    }
}

#[test]
fn the_remainder_may_exceed_the_limit() {
    let (mut attempt, handle) = ReplayBody::recording(Script::chunks(["1", "22", "333", "4444"]), 1);
    assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
    let mut replay = handle.into_replay().unwrap();
    assert_eq!(drain(&mut replay), [data("1"), data("22"), data("333"), data("4444"), Seen::End]);
}

#[test]
fn the_replay_waits_for_the_remainder_with_its_own_waker() {
    let gate = Gate::default();
    let (mut attempt, handle) = ReplayBody::recording(Script::new([chunk("1"), wait(&gate), chunk("2")]), LIMIT);
    let (first, second) = (Task::new(), Task::new());
    assert_eq!(poll(&mut attempt, &first), data("1"));
    assert_eq!(poll(&mut attempt, &first), Seen::Pending);
    let mut replay = handle.into_replay().unwrap();
    assert_eq!(first.wakes(), 1);
    assert_eq!(poll(&mut replay, &second), data("1"));
    assert_eq!(poll(&mut replay, &second), Seen::Pending);
    gate.open();
    assert_eq!((first.wakes(), second.wakes()), (1, 1));
    assert_eq!(drain(&mut replay), [data("2"), Seen::End]);
}

#[test]
fn a_source_that_ended_is_not_polled_again_by_the_replay() {
    // `Script` panics if it is polled after its end.
    let (mut attempt, handle) = ReplayBody::recording(Script::chunks(["1"]), LIMIT);
    assert_eq!(drain(&mut attempt), [data("1"), Seen::End]);
    let mut replay = handle.into_replay().unwrap();
    assert_eq!(drain(&mut replay), [data("1"), Seen::End]);
    assert_eq!(drain(&mut replay), [Seen::End]);
}

// The superseded attempt

#[test]
fn a_superseded_attempt_is_woken_and_returns_an_error_at_every_poll() {
    let gate = Gate::default();
    let (mut attempt, handle) = ReplayBody::recording(Script::new([chunk("1"), wait(&gate)]), LIMIT);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("1"));
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    assert_eq!(task.wakes(), 0);
    let _replay = handle.into_replay().unwrap();
    assert_eq!(task.wakes(), 1);
    assert!(!attempt.is_end_stream());
    let frame = Pin::new(&mut attempt).poll_frame(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Err(error))) = frame else { panic!("{frame:?}") };
    assert!(error.is::<Superseded>());
    assert_eq!(poll(&mut attempt, &task), superseded());
}

#[test]
fn a_superseded_attempt_that_was_never_polled_returns_an_error_at_its_first_poll() {
    let (mut attempt, handle) = ReplayBody::recording(Script::chunks(["1"]).exact(), LIMIT);
    let mut replay = handle.into_replay().unwrap();
    // The head may still be written, with the length of the whole body, which is never reached.
    assert_eq!((attempt.is_end_stream(), attempt.size_hint().exact()), (false, Some(1)));
    assert_eq!(poll(&mut attempt, &Task::new()), superseded());
    assert_eq!(drain(&mut replay), [data("1"), Seen::End]);
}

#[test]
fn a_superseded_attempt_that_sent_every_frame_but_has_not_seen_the_end_returns_an_error() {
    let (mut attempt, handle) = ReplayBody::recording(Script::chunks(["1"]), LIMIT);
    assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
    assert!(!attempt.is_end_stream());
    let _replay = handle.into_replay().unwrap();
    assert_eq!(poll(&mut attempt, &Task::new()), superseded());
}

#[test]
fn an_attempt_that_has_seen_the_end_is_not_superseded() {
    for (script, last) in [
        (Script::chunks(["1"]), [data("1"), Seen::End].as_slice()),
        (Script::chunks(["1"]).reports_end(), [data("1")].as_slice()),
    ] {
        let (mut attempt, handle) = ReplayBody::recording(script, LIMIT);
        for seen in last {
            assert_eq!(poll(&mut attempt, &Task::new()), *seen);
        }
        assert!(attempt.is_end_stream());
        let mut replay = handle.into_replay().unwrap();
        assert!(attempt.is_end_stream());
        assert_eq!(poll(&mut attempt, &Task::new()), Seen::End);
        assert_eq!(drain(&mut replay), [data("1"), Seen::End]);
    }
}

// Never polled, dropped, paused, released

#[test]
fn a_body_never_polled_replays_exactly() {
    let (attempt, handle) = ReplayBody::recording(Script::chunks(["1", "22"]).exact(), LIMIT);
    drop(attempt);
    let mut replay = handle.into_replay().unwrap();
    assert_eq!(replay.size_hint().exact(), Some(3));
    assert_eq!(drain(&mut replay), [data("1"), data("22"), Seen::End]);
}

#[test]
fn a_body_dropped_by_the_connection_first_is_replayed_whole() {
    for paused in [false, true] {
        let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1", "22", "333"]), LIMIT);
        assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
        if paused {
            handle.pause().unwrap();
        }
        drop(attempt);
        let mut replay = handle.into_replay().unwrap();
        assert_eq!(drain(&mut replay), [data("1"), data("22"), data("333"), Seen::End]);
    }
}

#[test]
fn a_superseded_attempt_that_is_dropped_does_not_affect_the_replay() {
    let (attempt, handle) = ReplayBody::recording(Script::chunks(["1", "22"]), LIMIT);
    let mut replay = handle.into_replay().unwrap();
    drop(attempt);
    assert_eq!(drain(&mut replay), [data("1"), data("22"), Seen::End]);
}

#[test]
fn an_attempt_that_is_paused_before_its_first_poll_is_replayed() {
    let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1", "22"]), LIMIT);
    let task = Task::new();
    handle.pause().unwrap();
    handle.pause().unwrap();
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    let mut replay = handle.into_replay().unwrap();
    assert_eq!(task.wakes(), 1);
    assert_eq!(poll(&mut attempt, &task), superseded());
    assert_eq!(drain(&mut replay), [data("1"), data("22"), Seen::End]);
}

#[test]
fn a_paused_attempt_does_not_read_the_source() {
    let gate = Gate::default();
    let (mut attempt, mut handle) = ReplayBody::recording(Script::new([wait(&gate), chunk("1")]), 0);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    handle.pause().unwrap();
    gate.open();
    assert_eq!(task.wakes(), 1);
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    // Otherwise the frame would have exceeded the limit.
    assert!(handle.into_replay().is_ok());
}

#[test]
fn a_resumed_attempt_is_woken_and_sends_the_rest_without_a_record() {
    let owned = Owned::default();
    let source = Script::new([owned.data("1"), owned.data("22"), owned.data("333")]);
    let (mut attempt, mut handle) = ReplayBody::recording(source, LIMIT);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("1"));
    handle.pause().unwrap();
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    assert_eq!(owned.alive(), 3);
    handle.resume();
    assert_eq!(task.wakes(), 1);
    assert_eq!(owned.alive(), 2);
    assert_eq!(drain(&mut attempt), [data("22"), data("333"), Seen::End]);
}

#[test]
fn an_attempt_that_is_resumed_before_its_first_poll_sends_everything() {
    let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1", "22"]).exact(), LIMIT);
    handle.pause().unwrap();
    handle.resume();
    let all = [(false, Some(3), None), (false, Some(2), Some(data("1"))), (false, Some(0), Some(data("22")))];
    assert_eq!(framing(&mut attempt)[..3], all);
}

#[test]
fn a_handle_that_is_dropped_while_paused_resumes_the_attempt() {
    let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1", "22"]), LIMIT);
    let task = Task::new();
    handle.pause().unwrap();
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    drop(handle);
    assert_eq!(task.wakes(), 1);
    assert_eq!(drain(&mut attempt), [data("1"), data("22"), Seen::End]);
}

#[test]
fn an_early_success_frees_the_record_while_the_upload_continues() {
    let (owned, gate) = (Owned::default(), Gate::default());
    let source = Script::new([owned.data("1"), owned.data("22"), wait(&gate), owned.data("333")]);
    let (mut attempt, handle) = ReplayBody::recording(source, LIMIT);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("1"));
    assert_eq!(poll(&mut attempt, &task), data("22"));
    assert_eq!(poll(&mut attempt, &task), Seen::Pending);
    assert_eq!(owned.alive(), 3);
    drop(handle);
    assert_eq!(owned.alive(), 1);
    // The source still holds the same waker, so no wake-up is needed.
    assert_eq!(task.wakes(), 0);
    gate.open();
    assert_eq!(task.wakes(), 1);
    assert_eq!(poll(&mut attempt, &task), data("333"));
    assert_eq!(owned.alive(), 0);
    assert_eq!(poll(&mut attempt, &task), Seen::End);
}

#[test]
fn everything_is_freed_with_attempt_and_handle_in_either_order() {
    for attempt_first in [true, false] {
        let owned = Owned::default();
        let (mut attempt, handle) = ReplayBody::recording(Script::new([owned.data("1"), owned.data("2")]), LIMIT);
        assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
        if attempt_first {
            drop(attempt);
            assert_eq!(owned.alive(), 2);
            drop(handle);
        } else {
            drop(handle);
            assert_eq!(owned.alive(), 1);
            drop(attempt);
        }
        assert_eq!(owned.alive(), 0);
    }
}

#[test]
fn a_passing_body_is_the_source_itself() {
    let mut passing = ReplayBody::passing(Script::chunks(["1", "22"]).exact().reports_end(), &OnePiece::default());
    assert_eq!(framing(&mut passing), framing(&mut Script::chunks(["1", "22"]).exact().reports_end()));
}

// Bodies in one piece

#[test]
fn a_body_that_is_one_piece_or_empty_is_given_back_as_bytes() {
    let data = Bytes::from_static(b"12345");
    let (attempt, handle) = ReplayBody::recording(Full::new(data.clone()), LIMIT);
    let replay = handle.into_replay().unwrap();
    for body in [attempt, replay] {
        assert_eq!(body.try_into_bytes().unwrap().as_ptr(), data.as_ptr());
    }
    let (attempt, handle) = ReplayBody::recording(Empty::<Bytes>::new(), LIMIT);
    for body in [attempt, handle.into_replay().unwrap()] {
        assert_eq!(body.try_into_bytes().unwrap(), Bytes::new());
    }
    assert_eq!(ReplayBody::passing("12".to_owned(), &OnePiece::default()).try_into_bytes().unwrap(), "12");
    // One piece, although it exceeds the limit.
    assert_eq!(ReplayBody::recording("12".to_owned(), 1).0.try_into_bytes().unwrap(), "12");
}

#[test]
fn a_streamed_body_is_given_back_as_it_was() {
    let (attempt, handle) = ReplayBody::recording(Script::chunks(["1", "22"]), LIMIT);
    let mut attempt = attempt.try_into_bytes().unwrap_err();
    assert_eq!(drain(&mut attempt), [data("1"), data("22"), Seen::End]);
    let mut replay = handle.into_replay().unwrap().try_into_bytes().unwrap_err();
    assert_eq!(drain(&mut replay), [data("1"), data("22"), Seen::End]);
    let passing = ReplayBody::passing(Script::chunks(["1"]), &OnePiece::default());
    assert_eq!(drain(&mut passing.try_into_bytes().unwrap_err()), [data("1"), Seen::End]);
}

#[test]
fn a_foreign_body_is_one_piece_if_the_app_says_so() {
    let says_so = OnePiece::new(|body: &Script| (body.size_hint().exact() == Some(3)).then(|| "123".into()));
    let body = Script::chunks(["12", "3"]).exact();
    let size = body.size_hint();
    let (attempt, handle) = ReplayBody::recorded(body, size, LIMIT, &says_so);
    assert_eq!(handle.into_replay().unwrap().try_into_bytes().unwrap(), "123");
    assert_eq!(attempt.try_into_bytes().unwrap(), "123");
    let passing = ReplayBody::passing(Script::chunks(["12", "3"]).exact(), &says_so);
    assert_eq!(passing.try_into_bytes().unwrap(), "123");
    // Otherwise, and for another type, the body is streamed.
    let body = Script::chunks(["1", "2"]).exact();
    let size = body.size_hint();
    let (mut attempt, _handle) = ReplayBody::recorded(body, size, LIMIT, &says_so);
    assert_eq!(drain(&mut attempt), [data("1"), data("2"), Seen::End]);
    let boxed = Script::chunks(["12", "3"]).exact().boxed_unsync();
    assert!(ReplayBody::passing(boxed, &says_so).try_into_bytes().is_err());
}

// Sources that fail, and unusual frames

#[test]
fn a_source_error_is_forwarded_with_its_cause_and_ends_replayability() {
    let (mut attempt, mut handle) = ReplayBody::recording(Script::new([chunk("1"), Step::Fail, chunk("2")]), LIMIT);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("1"));
    let frame = Pin::new(&mut attempt).poll_frame(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Err(error))) = frame else { panic!("{frame:?}") };
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::Other);
    assert_eq!(handle.pause(), Err(NotReplayable::SourceFailed));
    assert_eq!(handle.into_replay().err(), Some(NotReplayable::SourceFailed));
    // After an error, the source decides what follows.
    assert_eq!(drain(&mut attempt), [data("2"), Seen::End]);
}

#[test]
fn the_source_of_an_error_stays_intact() {
    #[derive(Debug)]
    struct Outer(io::Error);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("outer")
        }
    }
    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
    let body = Script::new([Step::Fail]).map_err(Outer);
    for mut body in [
        ReplayBody::passing(Script::new([Step::Fail]).map_err(Outer), &OnePiece::default()),
        ReplayBody::recording(body, LIMIT).0,
    ] {
        let frame = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(Err(error))) = frame else { panic!("{frame:?}") };
        assert_eq!(error.source().unwrap().to_string(), "the disk failed");
    }
}

#[test]
fn a_source_panic_reaches_the_caller_and_poisons_nothing() {
    let (mut attempt, mut handle) = ReplayBody::recording(Script::new([chunk("1"), Step::Panic]), LIMIT);
    let task = Task::new();
    assert_eq!(poll(&mut attempt, &task), data("1"));
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut attempt, &task))).is_err());
    let panicked = Seen::Error("the request body panicked".to_owned());
    assert_eq!(poll(&mut attempt, &task), panicked);
    assert!(!attempt.is_end_stream());
    assert_eq!(handle.pause(), Err(NotReplayable::SourceFailed));
    assert_eq!(poll(&mut attempt, &task), panicked);
    assert_eq!(handle.into_replay().err(), Some(NotReplayable::SourceFailed));
    assert_eq!(poll(&mut attempt, &task), panicked);
}

#[test]
fn after_a_source_panic_the_handle_can_be_dropped_and_frees_the_record() {
    let owned = Owned::default();
    let (mut attempt, handle) = ReplayBody::recording(Script::new([owned.data("1"), Step::Panic]), LIMIT);
    assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut attempt, &Task::new()))).is_err());
    drop(handle);
    assert_eq!(owned.alive(), 0);
    drop(attempt);
}

#[test]
fn buffers_other_than_bytes_are_copied_into_bytes() {
    let (mut attempt, handle) = ReplayBody::recording(Full::new(&b"12345"[..]), LIMIT);
    assert_eq!(attempt.size_hint().exact(), Some(5));
    assert_eq!(drain(&mut attempt), [data("12345"), Seen::End]);
    assert_eq!(drain(&mut handle.into_replay().unwrap()), [data("12345"), Seen::End]);

    // Data in more than one piece.
    let chain = || Buf::chain(&b"12"[..], &b"345"[..]);
    let (mut attempt, handle) = ReplayBody::recording(Full::new(chain()), LIMIT);
    assert_eq!(drain(&mut attempt), [data("12345"), Seen::End]);
    assert_eq!(drain(&mut handle.into_replay().unwrap()), [data("12345"), Seen::End]);
    assert_eq!(drain(&mut ReplayBody::passing(Full::new(chain()), &OnePiece::default())), [data("12345"), Seen::End]);
}

#[test]
fn zero_length_frames_are_replayed() {
    let script = || Script::chunks(["", "1", "", "", "2", ""]).exact().reports_end();
    let (mut attempt, handle) = ReplayBody::recording(script(), LIMIT);
    let first = framing(&mut attempt);
    assert_eq!(first, framing(&mut script()));
    assert_eq!(framing(&mut handle.into_replay().unwrap()), first);
}

#[test]
fn zero_length_frames_count_towards_the_limit() {
    let (mut attempt, handle) = ReplayBody::recording(Script::chunks([""; 101]), 100);
    assert_eq!(drain(&mut attempt).len(), 102);
    assert_eq!(handle.into_replay().err(), Some(NotReplayable::TooLarge));
}

#[test]
fn an_empty_frame_of_data_or_trailers_counts_as_one_byte() {
    for nothing in [|| chunk(""), || Step::Trailers(HeaderMap::new())] {
        for (limit, replayable) in [(3, true), (2, false)] {
            let (mut attempt, handle) = ReplayBody::recording(Script::new([chunk("12"), nothing()]), limit);
            assert_eq!(drain(&mut attempt).len(), 3);
            assert_eq!(handle.into_replay().is_ok(), replayable);
        }
    }
}

#[test]
fn ten_thousand_one_byte_frames_are_replayed_one_by_one() {
    let frames = || (0..10_000_u32).map(|i| Bytes::from(vec![i.to_le_bytes()[0]]));
    let all: Vec<_> = frames().map(Seen::Data).chain([Seen::End]).collect();
    for sent in [5, 5_000, 10_001] {
        let (mut attempt, handle) = ReplayBody::recording(Script::new(frames().map(Step::Data)), LIMIT);
        for expected in &all[..sent] {
            assert_eq!(poll(&mut attempt, &Task::new()), *expected);
        }
        assert_eq!(drain(&mut handle.into_replay().unwrap()), all);
    }
}

#[test]
fn the_waker_of_the_last_poll_is_the_one_that_is_woken() {
    for paused in [false, true] {
        let gate = Gate::default();
        let (mut attempt, mut handle) = ReplayBody::recording(Script::new([wait(&gate)]), LIMIT);
        if paused {
            handle.pause().unwrap();
        }
        let (first, second) = (Task::new(), Task::new());
        assert_eq!(poll(&mut attempt, &first), Seen::Pending);
        assert_eq!(poll(&mut attempt, &second), Seen::Pending);
        assert_eq!(Arc::strong_count(&first), 1, "the stale waker is dropped");
        let _replay = handle.into_replay().unwrap();
        assert_eq!((first.wakes(), second.wakes()), (0, 1));
    }
}

// User code and the lock

/// Polls the body that it holds, synchronously, when it is run.
#[derive(Default)]
struct Inline(Mutex<Option<ReplayBody<Script>>>, Mutex<Vec<Seen>>);

impl Inline {
    fn run(&self) {
        if let Some(body) = self.0.lock().unwrap().as_mut() {
            let seen = poll(body, &Task::new());
            self.1.lock().unwrap().push(seen);
        }
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.run();
    }
}

#[test]
fn a_waker_may_poll_the_attempt_synchronously() {
    for steal in [true, false] {
        let inline = Arc::new(Inline::default());
        let (mut attempt, mut handle) = ReplayBody::recording(Script::chunks(["1"]), LIMIT);
        handle.pause().unwrap();
        let waker = Waker::from(Arc::clone(&inline));
        assert!(Pin::new(&mut attempt).poll_frame(&mut Context::from_waker(&waker)).is_pending());
        *inline.0.lock().unwrap() = Some(attempt);
        if steal {
            assert!(handle.into_replay().is_ok());
        } else {
            handle.resume();
        }
        assert_eq!(*inline.1.lock().unwrap(), [if steal { superseded() } else { data("1") }]);
    }
}

#[test]
fn a_buffer_may_poll_the_attempt_when_it_is_dropped() {
    struct Polls(Arc<Inline>);
    impl AsRef<[u8]> for Polls {
        fn as_ref(&self) -> &[u8] {
            b"1"
        }
    }
    impl Drop for Polls {
        fn drop(&mut self) {
            self.0.run();
        }
    }
    let inline = Arc::new(Inline::default());
    let buffer = Bytes::from_owner(Polls(Arc::clone(&inline)));
    let (mut attempt, handle) = ReplayBody::recording(Script::new([Step::Data(buffer), chunk("2")]), LIMIT);
    assert_eq!(poll(&mut attempt, &Task::new()), data("1"));
    *inline.0.lock().unwrap() = Some(attempt);
    drop(handle);
    assert_eq!(*inline.1.lock().unwrap(), [data("2")]);
}

/// A body of one frame, whose data runs a callback when it is dropped.
struct Dropping(Option<Droppable>);

struct Droppable {
    left: &'static [u8],
    panics: bool,
    dropped: Arc<dyn Fn() + Send + Sync>,
}

impl Buf for Droppable {
    fn remaining(&self) -> usize {
        assert!(!self.panics, "the data panics");
        self.left.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.left
    }

    fn advance(&mut self, count: usize) {
        self.left.advance(count);
    }
}

impl Drop for Droppable {
    fn drop(&mut self) {
        (self.dropped)();
    }
}

impl Body for Dropping {
    type Data = Droppable;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Droppable>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }
}

/// Polls a [`Dropping`] body whose data calls `callback` with the handle when it is dropped. Panics on a deadlock.
fn dropping(panics: bool, callback: fn(Replay<Dropping>) -> Option<ReplayBody<Dropping>>) -> (Vec<Seen>, Vec<Seen>) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let handle = Arc::new(Mutex::new(None));
        let replay = Arc::new(Mutex::new(None));
        let dropped = Arc::new({
            let (handle, replay) = (Arc::clone(&handle), Arc::clone(&replay));
            move || *replay.lock().unwrap() = handle.lock().unwrap().take().and_then(callback)
        });
        let body = Dropping(Some(Droppable { left: b"data", panics, dropped }));
        let (mut attempt, keeper) = ReplayBody::recording(body, LIMIT);
        *handle.lock().unwrap() = Some(keeper);
        let first = catch_unwind(AssertUnwindSafe(|| poll(&mut attempt, &Task::new())));
        let attempt = [first.unwrap_or(Seen::Pending), poll(&mut attempt, &Task::new())].to_vec();
        let replay = replay.lock().unwrap().take();
        sender.send((attempt, replay.map_or(Vec::new(), |mut replay| drain(&mut replay)))).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(20)).expect("deadlock")
}

#[test]
fn data_that_was_copied_may_use_the_handle_when_it_is_dropped() {
    let stolen = dropping(false, |handle| Some(handle.into_replay().unwrap()));
    assert_eq!(stolen, (vec![data("data"), superseded()], vec![data("data"), Seen::End]));
    let resumed = dropping(false, |handle| {
        handle.resume();
        None
    });
    assert_eq!(resumed, (vec![data("data"), Seen::End], vec![]));
    let panicked = dropping(true, |mut handle| {
        assert_eq!(handle.pause(), Err(NotReplayable::SourceFailed));
        None
    });
    assert_eq!(panicked.0[1], Seen::Error("the request body panicked".to_owned()));
}

// The types

#[test]
fn the_body_is_send_and_unpin_and_its_debug_output_shows_no_content() {
    // Neither `Sync` nor `Clone`.
    type Boxed = UnsyncBoxBody<Bytes, Infallible>;
    fn body<T: Body<Data = Bytes, Error = BoxError> + Send>(_: &T) {}
    fn send<T: Send>(_: &T) {}
    fn unpin<T: Unpin>() {}
    unpin::<ReplayBody<PhantomPinned>>();
    let source: Boxed = Full::new(Bytes::from_static(b"secret")).boxed_unsync();
    let (attempt, handle) = ReplayBody::recording(source, LIMIT);
    body(&attempt);
    send(&handle);
    assert_eq!(format!("{attempt:?}"), "ReplayBody { .. }");
    assert!(!format!("{:?}", handle.into_replay().unwrap()).contains("secret"));
}

/// Counts the buffers that are alive.
#[derive(Clone, Default)]
struct Owned(Arc<()>);

struct Buffer(&'static str, #[expect(dead_code, reason = "held to be counted")] Owned);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Owned {
    fn data(&self, data: &'static str) -> Step {
        Step::Data(Bytes::from_owner(Buffer(data, self.clone())))
    }

    fn alive(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}
