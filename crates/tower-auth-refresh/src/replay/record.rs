//! The record of the frames that an attempt has sent.

use std::vec;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;

use super::NotReplayable;

/// The frames that an attempt has sent, in order and with their boundaries.
///
/// Data is kept by reference count. Only if a body consists of many tiny frames, they are copied into one buffer: each
/// would take more bookkeeping than data, and might keep a much larger buffer alive. So the memory stays within a small
/// multiple of the limit, whatever the sizes of the frames.
#[derive(Default)]
pub(super) struct Record {
    /// Separate, so that a body of one frame needs no list.
    first: Option<Kept>,
    more: Vec<Kept>,
    /// The number of bytes that may still be kept.
    room: usize,
}

/// An iterator over the frames of a [`Record`].
pub(super) struct Frames {
    first: Option<Kept>,
    more: vec::IntoIter<Kept>,
    /// The rest of a run of tiny frames.
    tiny: Bytes,
}

enum Kept {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    /// A run of tiny data frames, each as one byte of length and then its bytes.
    Tiny(Vec<u8>),
}

/// Data frames shorter than this are tiny.
const TINY: u8 = 64;

/// This many frames are kept uncopied, tiny or not.
const AS_THEY_CAME: usize = 8;

impl Record {
    pub(super) fn with_limit(limit: usize) -> Self {
        Self { room: limit, ..Self::default() }
    }

    /// Adds `frame`. After an error, the record is incomplete and can't be used.
    pub(super) fn push(&mut self, frame: &Frame<Bytes>) -> Result<(), NotReplayable> {
        if let Some(data) = frame.data_ref() {
            self.take_room(data.len())?;
            self.keep_data(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.take_room(trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum())?;
            self.keep(Kept::Trailers(Box::new(trailers.clone())));
        } else {
            return Err(NotReplayable::UnknownFrame);
        }
        Ok(())
    }

    pub(super) fn into_frames(self) -> Frames {
        Frames { first: self.first, more: self.more.into_iter(), tiny: Bytes::new() }
    }

    /// Reserves room for a frame. An empty frame takes one byte, or there could be any number of them.
    fn take_room(&mut self, bytes: usize) -> Result<(), NotReplayable> {
        self.room = self.room.checked_sub(bytes.max(1)).ok_or(NotReplayable::TooLarge)?;
        Ok(())
    }

    fn keep_data(&mut self, data: &Bytes) {
        let Some(len) = u8::try_from(data.len()).ok().filter(|len| *len < TINY && self.more.len() >= AS_THEY_CAME)
        else {
            return self.keep(Kept::Data(data.clone()));
        };
        if !matches!(self.more.last(), Some(Kept::Tiny(_))) {
            self.more.push(Kept::Tiny(Vec::new()));
        }
        if let Some(Kept::Tiny(run)) = self.more.last_mut() {
            run.push(len);
            run.extend_from_slice(data);
        }
    }

    fn keep(&mut self, kept: Kept) {
        if self.first.is_none() {
            self.first = Some(kept);
        } else {
            self.more.push(kept);
        }
    }
}

impl Frames {
    /// Returns whether no frames are left.
    pub(super) fn is_empty(&self) -> bool {
        self.tiny.is_empty() && self.first.is_none() && self.more.len() == 0
    }
}

impl Iterator for Frames {
    type Item = Frame<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.tiny.is_empty() {
            match self.first.take().or_else(|| self.more.next())? {
                Kept::Data(data) => return Some(Frame::data(data)),
                Kept::Trailers(trailers) => return Some(Frame::trailers(*trailers)),
                Kept::Tiny(run) => self.tiny = run.into(),
            }
        }
        let len = self.tiny.get_u8();
        Some(Frame::data(self.tiny.split_to(usize::from(len))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record {
        /// The memory of the record. Buffers that are kept by reference count count with their length.
        fn memory(&self) -> usize {
            let held = |kept: &Kept| match kept {
                Kept::Data(data) => data.len(),
                Kept::Trailers(_) => 0,
                Kept::Tiny(run) => run.capacity(),
            };
            self.more.capacity() * size_of::<Kept>() + self.first.iter().chain(&self.more).map(held).sum::<usize>()
        }
    }

    #[test]
    fn the_memory_of_a_record_stays_within_a_small_multiple_of_the_limit_for_any_frame_sizes() {
        const LIMIT: usize = 64 * 1024;
        let pattern = |lens: &[usize]| {
            let mut record = Record::with_limit(LIMIT);
            let frames = lens.iter().cycle().map(|len| Frame::data(Bytes::from(vec![7; *len])));
            let kept = frames.map(|frame| record.push(&frame)).take_while(Result::is_ok).count();
            assert!(record.memory() <= 4 * LIMIT, "{lens:?}: {} bytes", record.memory());
            kept
        };
        assert_eq!(pattern(&[0]), LIMIT);
        assert_eq!(pattern(&[1]), LIMIT);
        assert_eq!(pattern(&[64]), LIMIT / 64);
        for lens in [&[63][..], &[2], &[1, 64], &[0, 64], &[64, 1, 1], &[200, 3], &[LIMIT]] {
            pattern(lens);
        }
    }

    #[test]
    fn tiny_frames_do_not_keep_large_buffers_alive() {
        let buffers: Vec<_> = (0..100).map(|_| Bytes::from(vec![7; 1024])).collect();
        let mut record = Record::with_limit(1024);
        for buffer in &buffers {
            record.push(&Frame::data(buffer.slice(..1))).unwrap();
        }
        let held = buffers.iter().filter(|buffer| !buffer.is_unique()).count();
        assert!(held <= AS_THEY_CAME + 1, "{held}");
    }

    #[test]
    fn frames_that_are_not_tiny_are_kept_uncopied_among_tiny_ones() {
        let tiny = Bytes::from_static(&[7; TINY as usize - 1]);
        let large = Bytes::from_static(&[7; TINY as usize]);
        let mut record = Record::with_limit(usize::MAX);
        for _ in 0..20 {
            record.push(&Frame::data(tiny.clone())).unwrap();
        }
        record.push(&Frame::data(large.clone())).unwrap();
        let kept: Vec<_> = record.into_frames().map(|frame| frame.into_data().unwrap()).collect();
        assert_eq!((&kept[19], kept[19].as_ptr() == tiny.as_ptr()), (&tiny, false));
        assert_eq!((&kept[20], kept[20].as_ptr() == large.as_ptr()), (&large, true));
    }

    #[test]
    fn runs_of_tiny_frames_keep_their_order_and_boundaries() {
        let mut record = Record::with_limit(usize::MAX);
        let mut frames: Vec<Bytes> = Vec::new();
        for len in (0..70).chain([0, 1, 200, 1, 0, 255, 256, 63, 64, 62, 1]) {
            frames.push(vec![u8::try_from(len & 0xff).unwrap(); len].into());
        }
        for frame in &frames {
            record.push(&Frame::data(frame.clone())).unwrap();
        }
        let mut given = record.into_frames();
        for frame in frames {
            assert!(!given.is_empty());
            assert_eq!(given.next().unwrap().into_data().unwrap(), frame);
        }
        assert!(given.is_empty() && given.next().is_none());
    }

    #[test]
    fn trailers_among_tiny_frames_keep_their_place() {
        let mut record = Record::with_limit(usize::MAX);
        for _ in 0..20 {
            record.push(&Frame::data(Bytes::from_static(b"1"))).unwrap();
        }
        record.push(&Frame::trailers(HeaderMap::new())).unwrap();
        record.push(&Frame::data(Bytes::from_static(b"2"))).unwrap();
        let kinds: Vec<_> = record.into_frames().map(|frame| frame.is_data()).collect();
        assert_eq!(kinds, [vec![true; 20], vec![false, true]].concat());
    }
}
