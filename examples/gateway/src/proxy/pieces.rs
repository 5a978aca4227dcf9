//! [`Pieces`]: splits a response for HTTP/2.
//!
//! hyper asks for the next frame when the client has taken the last but for less than a byte of its window, and forgets a
//! response once it has the end. The size of a frame is thus what a client has to read within the time-out, and what
//! the connection may keep of a response that is no longer in flight.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The most that the client has to read within the time-out.
const PIECE: usize = 16 * 1024;

/// The most that is left of a response to be sent when it is no longer in flight.
const LAST_PIECE: usize = 1024;

/// A body whose frames have a limited size, and the last a smaller one.
pub(super) struct Pieces<B> {
    body: B,
    /// The rest of the last frame of the body.
    rest: Bytes,
}

impl<B> Pieces<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, rest: Bytes::new() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, rest } = &mut *self;
        if rest.is_empty() {
            match ready!(Pin::new(&mut *body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let length = match rest.len() {
            length if length <= LAST_PIECE || (length <= PIECE && !body.is_end_stream()) => length,
            length => PIECE.min(length - LAST_PIECE),
        };
        Poll::Ready(Some(Ok(Frame::data(rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(body.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http_body_util::BodyExt;

    use super::*;

    /// A body of these frames, whose end may be known with the last.
    struct Frames {
        frames: VecDeque<usize>,
        end_is_known: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let next = self.frames.pop_front();
            Poll::Ready(next.map(|length| Ok(Frame::data(vec![7; length].into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.end_is_known && self.frames.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.frames.iter().sum::<usize>() as u64)
        }
    }

    /// Returns the lengths of the pieces, whose sum is right at each.
    async fn pieces(frames: &[usize], end_is_known: bool) -> Vec<usize> {
        let mut body = Pieces::new(Frames { frames: frames.iter().copied().collect(), end_is_known });
        let mut left = frames.iter().sum::<usize>();
        let mut pieces = Vec::new();
        loop {
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            assert_eq!(body.is_end_stream(), end_is_known && left == 0);
            let Some(frame) = body.frame().await else { break };
            pieces.push(frame.unwrap().into_data().unwrap().len());
            left -= pieces.last().unwrap();
        }
        assert_eq!(left, 0);
        pieces
    }

    #[tokio::test]
    async fn large_frames_are_split() {
        assert_eq!(pieces(&[40_000, 5, 16_384], false).await, [16_384, 16_384, 7_232, 5, 16_384]);
    }

    #[tokio::test]
    async fn the_last_piece_is_small() {
        for (last, expected) in [
            (&[1_024][..], &[1_024][..]),
            (&[1_025], &[1, 1_024]),
            (&[16_384], &[15_360, 1_024]),
            (&[16_385], &[15_361, 1_024]),
            (&[17_408], &[16_384, 1_024]),
            (&[17_409], &[16_384, 1, 1_024]),
            (&[9_000, 9_000], &[9_000, 7_976, 1_024]),
        ] {
            assert_eq!(pieces(last, true).await, expected);
        }
    }
}
