//! A property test: any order of events against a model that is simple enough to be obviously right. The model is a
//! script, the read position, and the owner of the source.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use proptest::prelude::*;

use super::fixture::*;
use crate::replay::{NotReplayable, Replay, ReplayBody};

/// One step of the source, in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    Data(usize),
    Trailers,
    Wait,
    Fail,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// One of three tasks polls the attempt.
    Poll(usize),
    /// Lets the source pass one wait.
    Open,
    Pause,
    Resume,
    Steal,
    DropHandle,
    DropAttempt,
}

#[derive(Clone, Debug)]
struct Case {
    moves: Vec<Move>,
    exact: bool,
    reports_end: bool,
    limit: usize,
    events: Vec<Event>,
}

/// The phase of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Recording,
    Paused,
    Released,
    Stolen,
    Lost(NotReplayable),
}

struct Model {
    case: Case,
    phase: Phase,
    /// The number of moves that the source has made, and of waits that it may pass.
    made: usize,
    permits: usize,
    recorded: usize,
    /// The attempt has seen the end.
    ended: bool,
    /// The attempt owns the source, and reports the source's own size and end.
    streaming: bool,
}

impl Model {
    fn new(case: &Case) -> Self {
        let mut model = Self {
            case: case.clone(),
            phase: Phase::Recording,
            made: 0,
            permits: 0,
            recorded: 0,
            ended: false,
            streaming: false,
        };
        if model.case.exact && model.bytes(0) > model.case.limit && !model.is_end_reported() {
            model.phase = Phase::Lost(NotReplayable::TooLarge);
        }
        model.ended = model.is_end_reported();
        model
    }

    /// Returns the number of data bytes from a move on.
    fn bytes(&self, from: usize) -> usize {
        self.case.moves[from..].iter().map(|one| if let Move::Data(len) = one { *len } else { 0 }).sum()
    }

    fn empty_from_the_start(&self) -> bool {
        self.case.reports_end && self.case.moves.is_empty()
    }

    fn is_end_reported(&self) -> bool {
        self.case.reports_end && self.made == self.case.moves.len()
    }

    /// The frame of move number `index`. Its bytes identify it.
    fn frame(&self, index: usize) -> Seen {
        match self.case.moves[index] {
            Move::Data(len) => Seen::Data(vec![u8::try_from(index).unwrap(); len].into()),
            Move::Trailers => Seen::Trailers(trailers()),
            Move::Fail => Seen::Error("the disk failed".to_owned()),
            Move::Wait => unreachable!("a wait yields no frame"),
        }
    }

    /// Returns the result of a poll of the source.
    fn read(&mut self) -> Seen {
        while self.case.moves.get(self.made) == Some(&Move::Wait) {
            if self.permits == 0 {
                return Seen::Pending;
            }
            self.permits -= 1;
            self.made += 1;
        }
        if self.made == self.case.moves.len() {
            return Seen::End;
        }
        self.made += 1;
        self.frame(self.made - 1)
    }

    /// Returns the result of a poll of the attempt.
    fn poll(&mut self) -> Seen {
        if self.ended {
            return Seen::End;
        }
        match self.phase {
            Phase::Paused => return Seen::Pending,
            Phase::Stolen => return superseded(),
            Phase::Recording | Phase::Released | Phase::Lost(_) => {}
        }
        let seen = self.read();
        if self.phase == Phase::Recording {
            self.recorded += match &seen {
                Seen::Data(data) => data.len().max(1),
                Seen::Trailers(_) => "grpc-status0".len(),
                _ => 0,
            };
            if self.recorded > self.case.limit {
                self.phase = Phase::Lost(NotReplayable::TooLarge);
            }
            if matches!(seen, Seen::Error(_)) {
                self.phase = Phase::Lost(NotReplayable::SourceFailed);
            }
        }
        self.streaming = self.phase != Phase::Recording;
        self.ended = seen == Seen::End || (seen != Seen::Pending && self.is_end_reported());
        seen
    }

    /// Returns everything from the first frame to the end or an error.
    fn whole(&self) -> Vec<Seen> {
        let mut whole = Vec::new();
        for (index, one) in self.case.moves.iter().enumerate() {
            if *one != Move::Wait {
                whole.push(self.frame(index));
            }
            if *one == Move::Fail {
                return whole;
            }
        }
        whole.push(Seen::End);
        whole
    }
}

fn script(case: &Case, gate: &Gate, alive: &Arc<()>) -> Script {
    struct Counted(Vec<u8>, #[expect(dead_code, reason = "held to be counted")] Arc<()>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let script = Script::new(case.moves.iter().enumerate().map(|(index, one)| match one {
        Move::Data(len) => {
            Step::Data(Bytes::from_owner(Counted(vec![u8::try_from(index).unwrap(); *len], Arc::clone(alive))))
        }
        Move::Trailers => Step::Trailers(trailers()),
        Move::Wait => Step::Wait(gate.clone()),
        Move::Fail => Step::Fail,
    }));
    let script = if case.reports_end { script.reports_end() } else { script };
    if case.exact { script.exact() } else { script }
}

struct Run {
    model: Model,
    gate: Gate,
    alive: Arc<()>,
    tasks: [Arc<Task>; 3],
    attempt: Option<ReplayBody<Script>>,
    handle: Option<Replay<Script>>,
    replay: Option<ReplayBody<Script>>,
    /// The task of the attempt's last poll, if that was pending, and the number of its wake-ups at that time.
    waiting: Option<(usize, usize)>,
}

impl Run {
    fn new(case: &Case) -> Self {
        let (gate, alive) = (Gate::default(), Arc::new(()));
        let source = script(case, &gate, &alive);
        let reported = (source.is_end_stream(), bounds(&source));
        let (attempt, handle) = ReplayBody::recording(source, case.limit);
        assert_eq!((attempt.is_end_stream(), bounds(&attempt)), reported);
        Self {
            model: Model::new(case),
            gate,
            alive,
            tasks: [Task::new(), Task::new(), Task::new()],
            attempt: Some(attempt),
            handle: Some(handle),
            replay: None,
            waiting: None,
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Poll(task) => self.poll(task),
            Event::Open => {
                self.model.permits += 1;
                self.gate.open();
            }
            Event::Pause => {
                let Some(handle) = &mut self.handle else { return };
                let paused = handle.pause();
                if let Phase::Lost(reason) = self.model.phase {
                    assert_eq!(paused, Err(reason));
                } else {
                    assert_eq!(paused, Ok(()));
                    self.model.phase = Phase::Paused;
                }
            }
            Event::Resume | Event::DropHandle => {
                let Some(handle) = self.handle.take() else { return };
                if matches!(event, Event::Resume) {
                    handle.resume();
                } else {
                    drop(handle);
                }
                if self.model.phase == Phase::Paused {
                    self.assert_woken();
                }
                if matches!(self.model.phase, Phase::Recording | Phase::Paused) {
                    self.model.phase = Phase::Released;
                }
                self.assert_no_record();
            }
            Event::Steal => {
                let Some(handle) = self.handle.take() else { return };
                let replay = handle.into_replay();
                if let Phase::Lost(reason) = self.model.phase {
                    assert_eq!(replay.err(), Some(reason));
                } else {
                    self.model.phase = Phase::Stolen;
                    self.replay = Some(replay.unwrap());
                    self.assert_woken();
                }
            }
            Event::DropAttempt => {
                self.attempt = None;
                self.waiting = None;
            }
        }
    }

    fn poll(&mut self, task: usize) {
        let Some(attempt) = &mut self.attempt else { return };
        if self.model.streaming && self.model.ended {
            return;
        }
        let wakes = self.tasks[task].wakes();
        let seen = poll(attempt, &self.tasks[task]);
        assert_eq!(seen, self.model.poll());
        self.waiting = (seen == Seen::Pending).then_some((task, wakes));
        drop(seen);

        // Checks length and end at each step.
        let model = &self.model;
        let knows_end = if model.streaming { model.is_end_reported() } else { model.ended };
        assert_eq!(attempt.is_end_stream(), knows_end);
        let to_come = model.bytes(model.made) as u64;
        let exact = if model.ended && !model.streaming && !model.empty_from_the_start() {
            Some(0)
        } else {
            model.case.exact.then_some(to_come)
        };
        if model.phase != Phase::Stolen {
            assert_eq!(attempt.size_hint().exact(), exact);
        }
        if matches!(model.phase, Phase::Released | Phase::Lost(_)) {
            self.assert_no_record();
        }
    }

    /// Asserts that the task that waits for the attempt has been woken since.
    fn assert_woken(&self) {
        // A task whose attempt has ended meanwhile is not waiting.
        if let Some((task, wakes)) = self.waiting {
            assert!(self.tasks[task].wakes() > wakes, "task {task} was not woken");
        }
    }

    /// Asserts that only the frames that the source hasn't yielded yet are in memory.
    fn assert_no_record(&self) {
        let to_come = match (&self.attempt, &self.replay) {
            (None, None) => 0,
            _ => self.model.case.moves[self.model.made..].iter().filter(|one| matches!(one, Move::Data(_))).count(),
        };
        assert_eq!(Arc::strong_count(&self.alive) - 1, to_come);
    }

    /// Runs attempt and replay to their ends, and asserts that no frame is missing, duplicated or leaked.
    fn finish(mut self) {
        if self.model.phase == Phase::Paused {
            self.step(Event::DropHandle);
        }
        for _ in 0..self.model.case.moves.len() {
            self.step(Event::Open);
        }
        if let Some(mut replay) = self.replay.take() {
            let whole = self.model.whole();
            let size = self.model.bytes(0) as u64;
            assert_eq!(replay.size_hint().exact(), self.model.case.exact.then_some(size));
            assert_eq!(replay.is_end_stream(), self.model.empty_from_the_start());
            let mut sent = 0;
            for expected in whole {
                let seen = poll(&mut replay, &self.tasks[0]);
                assert_eq!(seen, expected);
                if let Seen::Data(data) = &seen {
                    sent += data.len() as u64;
                }
                if self.model.case.exact {
                    assert_eq!(replay.size_hint().exact(), Some(size - sent));
                }
            }
            // The replay has read the source to its end.
            self.model.made = self.model.case.moves.len();
        }
        while self.attempt.is_some() {
            let before = self.model.made;
            self.poll(0);
            let over = self.model.ended || self.model.phase == Phase::Stolen;
            if over {
                break;
            }
            assert!(self.model.made > before, "the attempt makes no progress");
        }
        drop((self.attempt.take(), self.handle.take()));
        assert_eq!(Arc::strong_count(&self.alive), 1, "a frame is still alive");
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let one = prop_oneof![
        8 => (0..5_usize).prop_map(Move::Data),
        2 => Just(Move::Wait),
        1 => Just(Move::Trailers),
        1 => Just(Move::Fail),
    ];
    let event = prop_oneof![
        16 => (0..3_usize).prop_map(Event::Poll),
        3 => Just(Event::Open),
        2 => Just(Event::Pause),
        1 => Just(Event::Resume),
        1 => Just(Event::Steal),
        1 => Just(Event::DropHandle),
        1 => Just(Event::DropAttempt),
    ];
    let moves = prop::collection::vec(one, 0..24);
    (moves, any::<bool>(), any::<bool>(), prop_oneof![0..24_usize, Just(1000)], prop::collection::vec(event, 0..32))
        .prop_map(|(moves, exact, reports_end, limit, events)| Case { moves, exact, reports_end, limit, events })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12_000) })]

    #[test]
    fn no_order_of_events_loses_or_duplicates_a_frame_or_leaves_a_task_waiting(case in cases()) {
        let mut run = Run::new(&case);
        for event in case.events {
            run.step(event);
        }
        run.finish();
    }
}
