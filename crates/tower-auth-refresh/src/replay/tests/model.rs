//! Any order of events against a model so simple that it can be seen to be right: a script, how far it has been read,
//! and who has it.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use proptest::prelude::*;

use super::fixture::*;
use crate::replay::{NotReplayable, Replay, ReplayBody};

/// What the source does, as the model has it.
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
    /// The source may get past a wait.
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
    tells_end: bool,
    limit: usize,
    events: Vec<Event>,
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Recording,
    Paused,
    Released,
    Stolen,
    Lost(NotReplayable),
}

struct Model {
    case: Case,
    fate: Fate,
    /// How many moves the source has made, and how many waits it may pass.
    made: usize,
    permits: usize,
    recorded: usize,
    /// The attempt knows that nothing more will come.
    ended: bool,
    /// The attempt has the source for itself and tells what that tells.
    streaming: bool,
}

impl Model {
    fn new(case: &Case) -> Self {
        let mut model = Self {
            case: case.clone(),
            fate: Fate::Recording,
            made: 0,
            permits: 0,
            recorded: 0,
            ended: false,
            streaming: false,
        };
        if model.case.exact && model.bytes(0) > model.case.limit && !model.tells_its_end() {
            model.fate = Fate::Lost(NotReplayable::TooLarge);
        }
        model.ended = model.tells_its_end();
        model
    }

    /// The bytes of data from a move on.
    fn bytes(&self, from: usize) -> usize {
        self.case.moves[from..].iter().map(|one| if let Move::Data(len) = one { *len } else { 0 }).sum()
    }

    fn empty_from_the_start(&self) -> bool {
        self.case.tells_end && self.case.moves.is_empty()
    }

    fn tells_its_end(&self) -> bool {
        self.case.tells_end && self.made == self.case.moves.len()
    }

    /// The frame that move number `index` yields: its bytes tell it from the others.
    fn frame(&self, index: usize) -> Seen {
        match self.case.moves[index] {
            Move::Data(len) => Seen::Data(vec![u8::try_from(index).unwrap(); len].into()),
            Move::Trailers => Seen::Trailers(trailers()),
            Move::Fail => Seen::Error("the disk is gone".to_owned()),
            Move::Wait => unreachable!("yields nothing"),
        }
    }

    /// What a poll of the source yields.
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

    /// What a poll of the attempt yields.
    fn poll(&mut self) -> Seen {
        if self.ended {
            return Seen::End;
        }
        match self.fate {
            Fate::Paused => return Seen::Pending,
            Fate::Stolen => return superseded(),
            Fate::Recording | Fate::Released | Fate::Lost(_) => {}
        }
        let seen = self.read();
        if self.fate == Fate::Recording {
            self.recorded += match &seen {
                Seen::Data(data) => data.len().max(1),
                Seen::Trailers(_) => "grpc-status0".len(),
                _ => 0,
            };
            if self.recorded > self.case.limit {
                self.fate = Fate::Lost(NotReplayable::TooLarge);
            }
            if matches!(seen, Seen::Error(_)) {
                self.fate = Fate::Lost(NotReplayable::SourceFailed);
            }
        }
        self.streaming = self.fate != Fate::Recording;
        self.ended = seen == Seen::End || (seen != Seen::Pending && self.tells_its_end());
        seen
    }

    /// Everything from the first frame to the end or an error.
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
    let script = if case.tells_end { script.tells_end() } else { script };
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
    /// The task whose poll of the attempt was the last, if that was pending, and how often it had been woken.
    waiting: Option<(usize, usize)>,
}

impl Run {
    fn new(case: &Case) -> Self {
        let (gate, alive) = (Gate::default(), Arc::new(()));
        let source = script(case, &gate, &alive);
        let told = (source.is_end_stream(), bounds(&source));
        let (attempt, handle) = ReplayBody::recording(source, case.limit);
        assert_eq!((attempt.is_end_stream(), bounds(&attempt)), told);
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
                if let Fate::Lost(reason) = self.model.fate {
                    assert_eq!(paused, Err(reason));
                } else {
                    assert_eq!(paused, Ok(()));
                    self.model.fate = Fate::Paused;
                }
            }
            Event::Resume | Event::DropHandle => {
                let Some(handle) = self.handle.take() else { return };
                if matches!(event, Event::Resume) {
                    handle.resume();
                } else {
                    drop(handle);
                }
                if self.model.fate == Fate::Paused {
                    self.woken();
                }
                if matches!(self.model.fate, Fate::Recording | Fate::Paused) {
                    self.model.fate = Fate::Released;
                }
                self.no_record();
            }
            Event::Steal => {
                let Some(handle) = self.handle.take() else { return };
                let replay = handle.into_replay();
                if let Fate::Lost(reason) = self.model.fate {
                    assert_eq!(replay.err(), Some(reason));
                } else {
                    self.model.fate = Fate::Stolen;
                    self.replay = Some(replay.unwrap());
                    self.woken();
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

        // Length and end, at each step.
        let model = &self.model;
        let knows_end = if model.streaming { model.tells_its_end() } else { model.ended };
        assert_eq!(attempt.is_end_stream(), knows_end);
        let to_come = model.bytes(model.made) as u64;
        let exact = if model.ended && !model.streaming && !model.empty_from_the_start() {
            Some(0)
        } else {
            model.case.exact.then_some(to_come)
        };
        if model.fate != Fate::Stolen {
            assert_eq!(attempt.size_hint().exact(), exact);
        }
        if matches!(model.fate, Fate::Released | Fate::Lost(_)) {
            self.no_record();
        }
    }

    /// Whoever waits for the attempt has been woken since.
    fn woken(&self) {
        // A task that polled an attempt which ended later is not waiting.
        if let Some((task, wakes)) = self.waiting {
            assert!(self.tasks[task].wakes() > wakes, "task {task} isn't woken");
        }
    }

    /// Of the frames, only those are in memory that the source hasn't yielded yet.
    fn no_record(&self) {
        let to_come = match (&self.attempt, &self.replay) {
            (None, None) => 0,
            _ => self.model.case.moves[self.model.made..].iter().filter(|one| matches!(one, Move::Data(_))).count(),
        };
        assert_eq!(Arc::strong_count(&self.alive) - 1, to_come);
    }

    /// Whatever is left runs to its end, and nothing of it is missing, doubled or left behind.
    fn finish(mut self) {
        if self.model.fate == Fate::Paused {
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
            // The source has been moved on.
            self.model.made = self.model.case.moves.len();
        }
        while self.attempt.is_some() {
            let before = self.model.made;
            self.poll(0);
            let over = self.model.ended || self.model.fate == Fate::Stolen;
            if over {
                break;
            }
            assert!(self.model.made > before, "the attempt doesn't get on");
        }
        drop((self.attempt.take(), self.handle.take()));
        assert_eq!(Arc::strong_count(&self.alive), 1, "something is left behind");
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
        .prop_map(|(moves, exact, tells_end, limit, events)| Case { moves, exact, tells_end, limit, events })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12_000) })]

    #[test]
    fn whatever_happens_in_whatever_order_nothing_is_lost_doubled_or_left_waiting(case in cases()) {
        let mut run = Run::new(&case);
        for event in case.events {
            run.step(event);
        }
        run.finish();
    }
}
