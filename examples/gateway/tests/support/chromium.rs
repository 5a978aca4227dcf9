//! Headless Chromium, driven over its debugging pipe: JSON messages that end in a zero byte, on descriptors 3 and 4.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A browser with an empty profile.
pub(crate) struct Chromium {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    profile: std::path::PathBuf,
    last: u64,
    events: Vec<Value>,
}

/// A tab.
pub(crate) struct Page<'a> {
    browser: &'a mut Chromium,
    session: String,
}

impl Chromium {
    /// Starts the browser, or returns `None` if it is not installed. On CI a missing browser is a failure.
    pub(crate) fn find() -> Option<Self> {
        let program = env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        let found = Command::new(&program).arg("--version").stderr(Stdio::null()).output();
        if found.is_ok_and(|output| output.status.success()) {
            return Some(Self::start(&program));
        }
        assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{program} is not installed");
        println!("skipped: {program} is not installed (set CHROMIUM to the path of a Chromium)");
        None
    }

    fn start(program: &str) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let profile = env::temp_dir().join(format!("gateway-chromium-{}-{number}", std::process::id()));
        // The shell duplicates its stdin and stdout to descriptors 3 and 4.
        let script = "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, program, "--headless=new", "--remote-debugging-pipe", "--window-size=1200,1100"]);
        // The sandbox is unavailable to root and in containers. Only the demo page is loaded.
        command.args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"]);
        // Those of the tests are of a private CA.
        command.arg("--ignore-certificate-errors");
        command.arg("--disable-background-networking").arg("--hide-scrollbars");
        command.arg(format!("--user-data-dir={}", profile.display()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, profile, last: 0, events: Vec::new() }
    }

    /// Opens a tab.
    pub(crate) fn open(&mut self, url: &str) -> Page<'_> {
        let target = self.call(None, "Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call(None, "Target.attachToTarget", &attach)["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.call(Some(&session), domain, &json!({}));
        }
        self.call(Some(&session), "Page.navigate", &json!({ "url": url }));
        Page { browser: self, session }
    }

    /// Returns a tab that is open.
    pub(crate) fn tab(&mut self, session: String) -> Page<'_> {
        Page { browser: self, session }
    }

    fn call(&mut self, session: Option<&str>, method: &str, parameters: &Value) -> Value {
        self.try_call(session, method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a command and returns its result or its error.
    fn try_call(&mut self, session: Option<&str>, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).unwrap();
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "the browser has exited");
            let mut response: Value = serde_json::from_slice(&bytes).unwrap();
            if response["id"] == self.last {
                return match response.get_mut("error") {
                    Some(error) => Err(error.take()),
                    None => Ok(response["result"].take()),
                };
            }
            self.events.push(response);
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

impl Page<'_> {
    /// Leaves the tab open, for [`Chromium::tab`].
    pub(crate) fn leave(self) -> String {
        self.session
    }

    /// Reloads the page and waits for the new document.
    pub(crate) fn reload(&mut self) {
        self.run("window.isOld = true");
        self.browser.call(Some(&self.session), "Page.reload", &json!({}));
        self.wait_for("!window.isOld");
    }

    /// Returns the value of an expression.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_evaluate(&mut self, expression: &str) -> Result<Value, Value> {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true });
        let mut response = self.browser.try_call(Some(&self.session), "Runtime.evaluate", &parameters)?;
        assert!(response.get("exceptionDetails").is_none(), "{expression}: {response}");
        Ok(response["result"]["value"].take())
    }

    pub(crate) fn run(&mut self, statement: &str) {
        self.evaluate(&format!("{{ {statement}; }}"));
    }

    pub(crate) fn wait_for(&mut self, condition: &str) {
        let deadline = Instant::now() + TIMEOUT;
        // Between two documents the evaluation fails.
        while self.try_evaluate(condition) != Ok(Value::Bool(true)) {
            if Instant::now() > deadline {
                let page = self.evaluate("document.body?.innerText ?? 'no page'");
                panic!("{condition} did not become true; errors: {:?}; page:\n{page}", self.errors());
            }
            sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn text(&mut self, selector: &str) -> String {
        self.evaluate(&format!("document.querySelector('{selector}').textContent")).as_str().unwrap().to_owned()
    }

    /// Returns the cookies that the browser sends to the URL of the page, those of no script included.
    pub(crate) fn cookies(&mut self) -> Vec<Value> {
        let mut response = self.browser.call(Some(&self.session), "Network.getCookies", &json!({}));
        response["cookies"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Returns the numbers in the tiles.
    pub(crate) fn totals(&mut self) -> Vec<String> {
        ["#browser-ok", "#browser-bad", "#refused", "#refreshes", "#replays"].map(|tile| self.text(tile)).to_vec()
    }

    /// Sets the width of the window and the preferred colour scheme.
    pub(crate) fn resize(&mut self, width: u32, colours: &str) {
        let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.browser.call(Some(&self.session), "Emulation.setDeviceMetricsOverride", &size);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": colours }] });
        self.browser.call(Some(&self.session), "Emulation.setEmulatedMedia", &media);
    }

    /// Returns a screenshot of the page as PNG.
    pub(crate) fn screenshot(&mut self) -> Vec<u8> {
        let parameters = json!({ "format": "png", "captureBeyondViewport": true });
        let response = self.browser.call(Some(&self.session), "Page.captureScreenshot", &parameters);
        STANDARD.decode(response["data"].as_str().unwrap()).unwrap()
    }

    /// Returns uncaught exceptions and violations of the page's policy, without failed calls.
    pub(crate) fn errors(&mut self) -> Vec<String> {
        self.evaluate("0");
        let is_error = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["source"] != "network",
            _ => false,
        };
        self.browser.events.iter().filter(is_error).map(Value::to_string).collect()
    }
}
