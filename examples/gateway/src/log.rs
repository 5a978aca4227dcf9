//! [`LogWriter`]: writes the log in a thread of its own.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::ascii::Ascii;
use crate::metrics::Metrics;

/// The bytes that may wait to be written.
const CAPACITY: usize = 1024 * 1024;

/// The time in which lines are collected for one write.
const INTERVAL: Duration = Duration::from_millis(5);

/// The longest wait for room for a line that isn't of a request.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// The longest wait of [`LogWriter::flush`]: nothing may read the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

thread_local! {
    /// This thread writes the lines: it can't wait for itself.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// A writer of log lines that makes no system call.
///
/// Its thread writes the lines a few milliseconds later, many at once. Call [`flush`](Self::flush) before the process
/// exits.
///
/// If nothing reads the log, a mebibyte waits to be written. Then the lines of requests are dropped, since requests must
/// not wait for the log. Other lines wait for a tenth of a second, and after one has waited in vain, they are dropped too
/// until lines have been written. Dropped lines are counted in the metrics, and a line says afterwards how many there
/// were.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    changed: Condvar,
    max_wait: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Buffer {
    lines: Vec<u8>,
    /// The thread has taken lines and not written them yet.
    is_writing: bool,
    /// The number of callers that wait for the thread.
    waiting: usize,
    /// A caller has waited in vain since the last write.
    is_stuck: bool,
    /// The lines that have been dropped since the last line that said so.
    dropped: u64,
}

impl LogWriter {
    /// Starts the thread that writes to `output`. Dropped lines are counted in `metrics`.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the thread can't be started.
    pub fn start(output: impl Write + Send + 'static, metrics: Arc<Metrics>) -> io::Result<Self> {
        Self::start_with(output, metrics, MAX_WAIT)
    }

    fn start_with(output: impl Write + Send + 'static, metrics: Arc<Metrics>, max_wait: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared { buffer: Mutex::default(), changed: Condvar::new(), max_wait, metrics });
        let writer = Self(shared.clone());
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_to(output))?;
        Ok(writer)
    }

    /// Writes a line of a request: without waiting, or not at all.
    pub(crate) fn write_or_drop(&self, line: &[u8]) {
        self.0.push(self.0.lock(), line);
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

    /// Adds a line, or drops it if there is no room.
    fn push(&self, mut buffer: MutexGuard<'_, Buffer>, line: &[u8]) {
        if buffer.lines.len() >= CAPACITY && !IS_WRITER.get() {
            buffer.dropped += 1;
            self.metrics.count_dropped_line();
            return;
        }
        let was_empty = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        if was_empty {
            self.changed.notify_all();
        }
    }

    fn write_to(&self, mut output: impl Write) {
        IS_WRITER.set(true);
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
            let dropped = std::mem::take(&mut self.lock().dropped);
            if dropped > 0 {
                tracing::warn!(lines = dropped, "lines of the log were dropped: it was not read fast enough");
            }
            let mut buffer = self.lock();
            (buffer.is_writing, buffer.is_stuck) = (false, false);
            drop(buffer);
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
        let is_full = |buffer: &Buffer| buffer.lines.len() >= CAPACITY;
        let max_wait = if IS_WRITER.get() { Duration::ZERO } else { self.0.max_wait };
        let mut buffer = self.0.wait_while(max_wait, |buffer| is_full(buffer) && !buffer.is_stuck);
        buffer.is_stuck |= is_full(&buffer);
        self.0.push(buffer, line);
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
        let writer = LogWriter::start(Held { permissions, written }, Arc::default()).unwrap();
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
    fn a_full_buffer_waits_for_the_output() {
        let ((permit, permissions), (written, output)) = (channel(), channel());
        let metrics = Arc::<Metrics>::default();
        let held = Held { permissions, written };
        let writer = LogWriter::start_with(held, metrics.clone(), Duration::from_secs(60)).unwrap();
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
        assert_eq!(metrics.dropped_lines(), 0);
    }

    #[test]
    fn lines_that_would_wait_for_too_long_are_dropped_and_counted() {
        const LINES: u64 = 4 * (CAPACITY / 1024) as u64;
        for of_requests in [true, false] {
            let ((permit, permissions), (written, output)) = (channel(), channel());
            let metrics = Arc::<Metrics>::default();
            let held = Held { permissions, written };
            let writer = LogWriter::start_with(held, metrics.clone(), Duration::from_millis(1)).unwrap();
            for number in 0..LINES {
                let line = format!("{number:01023}\n");
                if of_requests {
                    writer.write_or_drop(line.as_bytes());
                } else {
                    (&writer).write_all(line.as_bytes()).unwrap();
                }
            }
            assert!(writer.0.lock().lines.len() <= CAPACITY + 1024);
            let dropped = metrics.dropped_lines();
            // What the thread has taken, and what waits.
            assert!((LINES / 4..LINES).contains(&dropped), "{dropped}");
            let permitting = thread::spawn(move || while permit.send(()).is_ok() {});
            let mut log = Vec::new();
            while log.len() as u64 / 1024 < LINES - dropped {
                log.extend(output.recv().unwrap());
            }
            let log = String::from_utf8(log).unwrap();
            let numbers: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
            assert!(numbers.is_sorted() && numbers.len() as u64 == LINES - dropped);
            // There is room again.
            writer.write_or_drop(b"the last line\n");
            assert_eq!(output.recv().unwrap(), b"the last line\n");
            assert_eq!(metrics.dropped_lines(), dropped);
            drop((output, permitting));
        }
    }
}
