//! [`LogWriter`]: writes the log in a thread of its own.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::ascii::Ascii;

/// The bytes that may wait to be written. A thread that logs more waits: no line is dropped.
const CAPACITY: usize = 1024 * 1024;

/// The time in which lines are collected for one write.
const INTERVAL: Duration = Duration::from_millis(5);

/// The longest wait of [`LogWriter::flush`]: nothing may read the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A writer of log lines that makes no system call, except when a mebibyte is waiting to be written.
///
/// Its thread writes the lines a few milliseconds later, many at once. Call [`flush`](Self::flush) before the process
/// exits.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    lines: Vec<u8>,
    /// The thread has taken lines and not written them yet.
    is_writing: bool,
    /// The number of callers that wait for the thread.
    waiting: usize,
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the thread can't be started.
    pub fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = Self(shared.clone());
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_to(output))?;
        Ok(writer)
    }

    /// Waits until all lines are written, but at most a second.
    pub fn flush(&self) {
        drop(self.0.wait_while(FLUSH_TIMEOUT, |buffer| buffer.is_writing || !buffer.lines.is_empty()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // No code that may panic runs under the lock.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut output: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut buffer = self.lock();
            while buffer.lines.is_empty() {
                buffer = self.changed.wait(buffer).unwrap_or_else(PoisonError::into_inner);
            }
            let collect = |buffer: &mut Buffer| buffer.waiting == 0 && buffer.lines.len() < CAPACITY / 2;
            let waited = self.changed.wait_timeout_while(buffer, INTERVAL, collect);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            std::mem::swap(&mut buffer.lines, &mut lines);
            buffer.is_writing = true;
            drop(buffer);
            // The log is the only place where a failure could be reported.
            let _ = output.write_all(&lines).and_then(|()| output.flush());
            lines.clear();
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits while `condition` holds, but at most for `time`.
    fn wait_while(&self, time: Duration, condition: impl Fn(&Buffer) -> bool) -> MutexGuard<'_, Buffer> {
        let mut buffer = self.lock();
        if !condition(&buffer) {
            return buffer;
        }
        buffer.waiting += 1;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(buffer, time, |buffer| condition(buffer));
        buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
        buffer.waiting -= 1;
        buffer
    }
}

impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.wait_while(Duration::MAX, |buffer| buffer.lines.len() >= CAPACITY);
        let was_empty = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        if was_empty {
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Ascii<&'a Self>;

    fn make_writer(&'a self) -> Ascii<&'a Self> {
        Ascii(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output whose every write waits for permission.
    struct Held {
        permissions: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Held {
        fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
            self.permissions.recv().map_err(io::Error::other)?;
            self.written.send(lines.to_owned()).map_err(io::Error::other)?;
            Ok(lines.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order_and_logging_does_not_wait_for_the_output() {
        let ((permit, permissions), (written, output)) = (channel(), channel());
        let writer = LogWriter::start(Held { permissions, written }).unwrap();
        let numbers = 0..1000;
        let lines: Vec<u8> = numbers.clone().flat_map(|number| format!("{number}\n").into_bytes()).collect();
        for number in numbers {
            writeln!(&writer, "{number}").unwrap();
        }
        let permitting = thread::spawn(move || while permit.send(()).is_ok() {});
        writer.flush();
        assert_eq!(output.try_iter().flatten().collect::<Vec<_>>(), lines);
        drop(output);
        writeln!(&writer, "the output has failed").unwrap();
        writer.flush();
        drop(permitting);
    }

    #[test]
    fn a_full_buffer_waits_for_the_output_and_drops_no_line() {
        let ((permit, permissions), (written, output)) = (channel(), channel());
        let writer = LogWriter::start(Held { permissions, written }).unwrap();
        let line = [b'x'; 1024];
        let lines = 3 * CAPACITY / line.len();
        let logging = {
            let writer = writer.clone();
            thread::spawn(move || (0..lines).for_each(|_| (&writer).write_all(&line).unwrap()))
        };
        let mut left = lines * line.len();
        while left > 0 {
            assert!(writer.0.lock().lines.len() <= CAPACITY + line.len());
            permit.send(()).unwrap();
            left -= output.recv().unwrap().len();
        }
        logging.join().unwrap();
    }
}
