//! [`ControlFrames`]: counts the frames of HTTP/2 that carry no request and no data.

/// The length of the connection preface.
const PREFACE: usize = 24;

/// The length of a frame's header (RFC 9113 §4.1).
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Reads frame headers out of a client's bytes.
#[derive(Debug)]
pub(super) struct ControlFrames {
    /// Bytes up to the next frame header.
    skip: usize,
    header: [u8; HEADER],
    /// The number of bytes of the header that have arrived.
    arrived: usize,
}

impl Default for ControlFrames {
    fn default() -> Self {
        Self { skip: PREFACE, header: [0; HEADER], arrived: 0 }
    }
}

impl ControlFrames {
    /// Returns the number of control frames whose headers end in these bytes. Frames of data without data count too.
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut frames = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let length = bytes.len().min(HEADER - self.arrived);
            self.header[self.arrived..self.arrived + length].copy_from_slice(&bytes[..length]);
            self.arrived += length;
            bytes = &bytes[length..];
            if self.arrived == HEADER {
                self.arrived = 0;
                let [high, middle, low, kind, ..] = self.header;
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                let carries = matches!(kind, DATA | HEADERS | CONTINUATION) && self.skip > 0;
                frames += u32::from(!carries);
            }
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 0];
        frame.resize(HEADER + usize::from(length), b'x');
        frame
    }

    /// Reads may end anywhere in a frame.
    #[test]
    fn control_frames_are_counted_in_any_pieces() {
        let kinds =
            [(4, 0), (4, 18), (6, 8), (0, 200), (0, 0), (1, 30), (9, 7), (8, 4), (2, 5), (3, 4), (1, 0), (99, 3)];
        let frames = kinds.into_iter().flat_map(|(kind, length)| frame(kind, length));
        let bytes: Vec<_> = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().copied().chain(frames).collect();
        for size in 1..=bytes.len() {
            let mut count = ControlFrames::default();
            assert_eq!(bytes.chunks(size).map(|piece| count.count(piece)).sum::<u32>(), 9, "{size}");
        }
    }
}
