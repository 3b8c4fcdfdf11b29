//! The report in a real browser: Debian's chromium, driven by its chromedriver (W3C WebDriver).

mod fixture;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use canary_testbed::test::{SOON, skip};
use conntrack_lab::document::lab::LabResult;
use conntrack_lab::report::folder;
use serde_json::{Value, json};

canary_testbed::tests![
    the_filter_shows_what_fits,
    a_link_opens_what_it_leads_to,
    the_keyboard_is_enough,
    a_screen_reader_hears_names,
    the_overview_fits_its_window,
    the_page_is_light_and_dark,
    the_default_run_prints_on_six_pages,
];

/// A browser with the report of a run open, 1,280 pixels wide.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
    page: String,
    // Both are removed when the browser is gone.
    _run: tempfile::TempDir,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(result: &LabResult) -> Self {
        let found = |name: &str| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
        };
        let (Some(chromium), Some(driver)) = (found("chromium"), found("chromedriver")) else {
            skip(
                "no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)",
            );
        };
        // The namespace that the tests run in has nothing up.
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let (run, profile) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        folder::write(run.path(), result).unwrap();
        let mut driver = Command::new(driver)
            .args(["--port=0", "--log-level=SEVERE"])
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = BufReader::new(driver.stdout.take().unwrap());
        let port = said.lines().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.rsplit_once("started successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        let page = format!("file://{}/report.html", run.path().display());
        let mut browser = Self {
            driver,
            port: port.expect("chromedriver says its port"),
            session: String::new(),
            page,
            _run: run,
            _profile: profile,
        };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1280,1000",
        ];
        let options = json!({ "binary": chromium, "args": arguments });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let session = browser.call("POST", "", &wanted);
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        browser.go("");
        browser
    }

    fn go(&self, fragment: &str) {
        // Through an empty page, so that a new fragment is a new visit.
        self.call("POST", "/url", &json!({ "url": "about:blank" }));
        self.call("POST", "/url", &json!({ "url": format!("{}{fragment}", self.page) }));
    }

    fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs `script` until it returns `expected`: pages scroll and events come when they do.
    fn wait(&self, script: &str, expected: &Value) {
        let until = Instant::now() + SOON;
        loop {
            let found = self.run(script);
            if found == *expected {
                return;
            }
            assert!(Instant::now() < until, "{found} is not {expected}: {script}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn call(&self, method: &str, command: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "{method} /session{}{command} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.session,
            body.len()
        )
        .unwrap();
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(n) = line.strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert!(answer["value"]["error"].is_null(), "{command}: {answer}");
        answer["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.call("DELETE", "", &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The filter leaves the rows that fit, says how many, and opens what holds them; a link to a row
/// that it hides takes it away.
fn the_filter_shows_what_fits() {
    let browser = Browser::open(&fixture::result());
    let state = "return [
        document.getElementById('filter').hidden,
        [...document.querySelectorAll('tbody.found')].filter((r) => r.checkVisibility()).map((r) => r.id),
        document.getElementById('matches').textContent]";
    let begin = browser.run(state);
    assert_eq!(begin, json!([false, [], ""]), "folded, and nothing filtered");
    let typed = browser.run(&format!(
        "const w = document.getElementById('words'); w.value = 'ClusterIP liberal'; \
         w.dispatchEvent(new Event('input')); {state}"
    ));
    assert_eq!(typed, json!([false, ["generations:liberal"], "1 of 3 rows"]));
    let kinds = browser.run(&format!(
        "document.getElementById('words').value = ''; const s = document.getElementById('shown'); \
         s.value = 'resets'; s.dispatchEvent(new Event('change')); {state}"
    ));
    assert_eq!(kinds, json!([false, ["generations:none", "generations:liberal"], "2 of 3 rows"]));
    browser.run("location.hash = '#generations:forward-drop'");
    let all = ["generations:none", "generations:forward-drop", "generations:liberal"];
    browser.wait(state, &json!([false, all, ""]));
}

/// A link to a cell opens everything that it is folded into, and shows it.
fn a_link_opens_what_it_leads_to() {
    let browser = Browser::open(&fixture::result());
    let result = fixture::result();
    let mut cells = result.scenarios.iter().flat_map(|s| &s.cells);
    let cell = &cells.find(|c| !c.captures.is_empty()).unwrap().id;
    let seen = format!(
        "const e = document.getElementById({cell:?}); const b = e.getBoundingClientRect(); \
         return [e.checkVisibility(), b.top >= 0 && b.bottom <= innerHeight]"
    );
    assert_eq!(browser.run(&seen)[0], false, "folded without the link");
    browser.go(&format!("#{cell}"));
    browser.wait(&seen, &json!([true, true]));
}

/// Without a mouse: the first stop skips to the report, the filter takes what is typed, and a
/// scenario that it leaves folds and opens again.
fn the_keyboard_is_enough() {
    const TAB: char = '\u{e004}';
    const ENTER: char = '\u{e007}';
    let browser = Browser::open(&fixture::result());
    let keys = |text: &str| {
        let keys: Vec<_> = text
            .chars()
            .flat_map(|c| {
                ["keyDown", "keyUp"].map(|t| json!({ "type": t, "value": c.to_string() }))
            })
            .collect();
        let actions = json!({ "actions": [{ "type": "key", "id": "k", "actions": keys }] });
        browser.call("POST", "/actions", &actions);
    };
    // Stops at the first element that `is` says, a hundred stops on at most.
    let tab_to = |is: &str| {
        let at = format!("const e = document.activeElement; return {is}");
        assert!((0..100).any(|_| {
            keys(&TAB.to_string());
            browser.run(&at) == json!(true)
        }));
    };
    keys(&TAB.to_string());
    assert_eq!(browser.run("return document.activeElement.className"), json!("skip"));
    keys(&ENTER.to_string());
    browser.wait("return location.hash", &json!("#main"));
    tab_to("e.id === 'words'");
    let ring = "const s = getComputedStyle(document.activeElement); return s.outlineStyle";
    assert_eq!(browser.run(ring), json!("solid"), "the focus is seen");
    keys("liberal");
    browser.wait("return document.getElementById('matches').textContent", &json!("1 of 3 rows"));
    tab_to("e.tagName === 'SUMMARY' && e.parentElement.className === 'scenario'");
    for open in [false, true] {
        keys(&ENTER.to_string());
        browser.wait("return document.activeElement.parentElement.open", &json!(open));
    }
}

/// What can be used or jumped to has a role and a name of its own, and what changes is announced.
fn a_screen_reader_hears_names() {
    let browser = Browser::open(&fixture::result());
    // What is folded has no role.
    browser.go("#generations:none");
    let of = |css: &str, what: &str| {
        let found = json!({ "using": "css selector", "value": css });
        let element = browser.call("POST", "/element", &found);
        let id = element.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        browser
            .call("GET", &format!("/element/{id}/{what}"), &json!({}))
            .as_str()
            .unwrap()
            .to_owned()
    };
    for (css, role, name) in [
        ("main", "main", ""),
        ("nav", "navigation", "On this page"),
        ("#words", "searchbox", "Filter"),
        ("#shown", "combobox", "Show"),
        ("#matches", "status", ""),
        (".answer > section:nth-child(2)", "region", "What to do"),
        ("table.grid", "table", "Protections that every node has"),
        ("a.link", "link", "link to this row"),
    ] {
        assert_eq!((&*of(css, "computedrole"), &*of(css, "computedlabel")), (role, name), "{css}");
    }
    assert_eq!(browser.run("return document.documentElement.lang"), json!("en"));
}

/// At 1,280 pixels the whole overview is visible; at 390 it is folded to symbols, and the page
/// itself never scrolls sideways.
fn the_overview_fits_its_window() {
    let browser = Browser::open(&fixture::as_large_as_the_default());
    let fits = "const wide = document.querySelector('.grid').parentElement; return [
        document.documentElement.scrollWidth <= innerWidth, wide.scrollWidth <= wide.clientWidth,
        getComputedStyle(document.querySelector('.grid .short')).display]";
    assert_eq!(browser.run(fits), json!([true, true, "none"]));
    let phone = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params":
        { "width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true } });
    browser.call("POST", "/goog/cdp/execute", &phone);
    assert_eq!(browser.run(fits), json!([true, true, "block"]));
}

/// The page follows the reader's scheme: dark on light, and light on dark.
fn the_page_is_light_and_dark() {
    let browser = Browser::open(&fixture::result());
    let light = "const c = getComputedStyle(document.body);
        const sum = (v) => v.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0);
        return sum(c.backgroundColor) > sum(c.color)";
    for (scheme, expected) in [("light", true), ("dark", false)] {
        let features = [json!({ "name": "prefers-color-scheme", "value": scheme })];
        let media =
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        browser.call("POST", "/goog/cdp/execute", &media);
        assert_eq!(browser.run(light), json!(expected), "{scheme}");
    }
}

/// A run of the default's size prints on at most six pages and is smaller than 400 KB.
fn the_default_run_prints_on_six_pages() {
    let browser = Browser::open(&fixture::as_large_as_the_default());
    let run = Path::new(browser.page.strip_prefix("file://").unwrap()).parent().unwrap();
    let size = fs::metadata(run.join("report.html")).unwrap().len();
    assert!((250_000..400_000).contains(&size), "{size}");
    let pdf = browser.call("POST", "/print", &json!({}));
    let pdf = BASE64_STANDARD.decode(pdf.as_str().unwrap()).unwrap();
    let pages = String::from_utf8_lossy(&pdf).matches("/Type /Page\n").count();
    assert!((1..=6).contains(&pages), "{pages}");
}
