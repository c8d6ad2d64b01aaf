//! Fetching, against servers on this machine that do what servers do.

#[path = "common/server.rs"]
mod server;

use replicate::error::{EXIT_INPUT, EXIT_RUN, EXIT_USAGE, Error, Result};
use replicate::store::fetch::*;
use server::{Answer, Request, Server};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A busy machine is not a silent server.
const PATIENCE: Patience = Patience {
    stall: Duration::from_secs(20),
    attempts: 3,
    pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(50),
};
const HASTE: Patience = Patience { stall: Duration::from_millis(400), ..PATIENCE };

/// 200,000 bytes that differ with `seed`.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..200_000).map(step).collect()
}

fn sha256(bytes: &[u8]) -> String {
    replicate::store::sha256_hex(bytes)
}

/// An asset named `thing` with this content.
fn thing(content: &[u8], addresses: &[String]) -> Asset {
    let urls: Vec<Address> = addresses.iter().map(|url| Address::Url(url.clone().leak())).collect();
    Asset {
        id: "thing",
        what: "a thing",
        licence: "MIT",
        bytes: Some(content.len() as u64),
        hash: Hash::Several(sha256(content).leak()),
        from: urls.leak(),
    }
}

fn unpublished(asset: Asset) -> Asset {
    Asset { hash: Hash::Unpublished, bytes: None, ..asset }
}

/// A store of its own and everything that was said about it.
struct Case {
    dir: TempDir,
    inputs: Inputs,
    log: Vec<String>,
}

fn options() -> Options<'static> {
    Options {
        from: None,
        mirror: None,
        offline: false,
        hub: Hub { endpoint: "http://127.0.0.1:9".into(), cache: "/nonexistent".into(), offline: false },
        patience: PATIENCE,
        check: &|_, _| Ok(()),
    }
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        Case { inputs: Inputs::of(dir.path()), dir, log: Vec::new() }
    }

    fn fetch(&mut self, asset: &Asset, options: &Options) -> Result<PathBuf> {
        let log = &mut self.log;
        fetch(&self.inputs, asset, options, &mut |progress| {
            log.push(format!("{progress:?}"));
            Ok(())
        })
    }

    fn path(&self, below_inputs: &str) -> PathBuf {
        self.dir.path().join("inputs").join(below_inputs)
    }

    fn said(&self, text: &str) -> bool {
        self.log.iter().any(|line| line.contains(text))
    }

    fn names(&self, below_inputs: &str) -> Vec<String> {
        let Ok(children) = fs::read_dir(self.path(below_inputs)) else { return Vec::new() };
        let mut names: Vec<_> =
            children.map(|child| child.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The store has `content`, under its hash, and no trace of how it came.
    fn assert_has(&self, asset: &Asset, path: &Path, content: &[u8]) {
        assert_eq!(path, self.path(&sha256(content)));
        assert!(fs::read(path).unwrap() == content, "the bytes are those that were served");
        assert_eq!(find(&self.inputs, asset).unwrap().as_deref(), Some(path));
        assert_eq!(self.names("partial"), ["thing.lock"]);
    }

    fn assert_has_nothing(&self) {
        let names = self.names("");
        assert!(
            names.iter().all(|name| ["index", "partial"].contains(&name.as_str())),
            "nothing passes as finished: {names:?}"
        );
    }
}

fn ranges(server: &Server) -> Vec<Option<usize>> {
    server.requests().iter().map(|request| request.range.map(|(from, _)| from)).collect()
}

#[test]
fn a_file_is_fetched_once_and_its_size_said_before() {
    let good = content(1);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &[format!("{}/thing.bin", server.url)]);
    let mut case = Case::new();
    assert_eq!(find(&case.inputs, &asset).unwrap(), None);
    let planned = plan(&case.inputs, [&asset]).unwrap();
    assert_eq!((planned[0].stand, planned[0].to_come()), (Stand::Missing { have: 0 }, Some(200_000)));

    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(
        case.log[0],
        format!("Begin {{ from: \"{}/thing.bin\", have: 0, bytes: Some(200000) }}", server.url)
    );
    assert_eq!(case.log.last().unwrap(), "Bytes { have: 200000, of: Some(200000) }");
    let record = case.inputs.record(&asset).unwrap().unwrap();
    assert_eq!(record.from, format!("{}/thing.bin", server.url));
    assert_eq!((record.bytes, record.first_seen), (200_000, false));
    let planned = plan(&case.inputs, [&asset]).unwrap();
    assert_eq!((planned[0].stand, planned[0].to_come()), (Stand::There { bytes: 200_000 }, Some(0)));

    assert_eq!(case.fetch(&asset, &options()).unwrap(), path);
    assert_eq!(server.requests().len(), 1, "what is there is not fetched again");
}

#[test]
fn a_cut_connection_is_resumed_where_it_ended() {
    let good = content(2);
    let served = good.clone();
    let server = Server::start(move |request| {
        let answer = Answer::file(&served, request);
        if request.before < 5 { answer.cut(30_000) } else { answer }
    });
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    // More cuts than attempts: each brought something new.
    let expected = [None, Some(30_000), Some(60_000), Some(90_000), Some(120_000), Some(150_000)];
    assert_eq!(ranges(&server), expected);
    assert_eq!(server.sent().iter().sum::<usize>(), 200_000, "no byte is sent twice");
}

#[test]
fn a_silent_server_is_left_and_asked_again() {
    let good = content(3);
    let served = good.clone();
    let server = Server::start(move |request| {
        let answer = Answer::file(&served, request);
        if request.before == 0 { answer.stall(50_000) } else { answer }
    });
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &Options { patience: HASTE, ..options() }).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(50_000)]);
    assert!(case.said("does not respond"), "{:?}", case.log);
}

#[test]
fn a_404_is_final_and_says_what_to_do() {
    let server = Server::start(|_| Answer::status(404));
    let url = format!("{}/gone.bin", server.url);
    let asset = thing(&content(4), std::slice::from_ref(&url));
    let mut case = Case::new();
    let error = case.fetch(&asset, &options()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let text = error.to_string();
    for part in ["thing", &url, "404", "replicate fetch thing --store ", " --from FILE`", "REPLICATE_MIRROR"]
    {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert_eq!(server.requests().len(), 1, "it is not asked again");
    case.assert_has_nothing();
}

#[test]
fn retry_after_is_honoured_and_bounded() {
    let good = content(5);
    for (seconds, longest, pause) in [("1", 5_000, "1s"), ("3600", 50, "50ms")] {
        let served = good.clone();
        let server = Server::start(move |request| match request.before {
            0 => Answer::status(429).header("Retry-After", seconds),
            _ => Answer::file(&served, request),
        });
        let asset = thing(&good, &[server.url.clone()]);
        let patience = Patience { longest_pause: Duration::from_millis(longest), ..PATIENCE };
        let mut case = Case::new();
        let begun = Instant::now();
        let path = case.fetch(&asset, &Options { patience, ..options() }).unwrap();
        case.assert_has(&asset, &path, &good);
        let waiting = format!("429 Too Many Requests\", left: Some({pause})");
        assert!(case.said(&waiting), "{:?}", case.log);
        assert!(seconds != "1" || begun.elapsed() >= Duration::from_secs(1), "it did wait");
    }
}

#[test]
fn a_failing_server_is_asked_a_few_times_only() {
    let good = content(6);
    let served = good.clone();
    let recovers = Server::start(move |request| match request.before {
        0 => Answer::status(500),
        1 => Answer::status(503),
        _ => Answer::file(&served, request),
    });
    let asset = thing(&good, &[recovers.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);

    let fails = Server::start(|_| Answer::status(500));
    let mut case = Case::new();
    let error = case.fetch(&thing(&good, &[fails.url.clone()]), &options()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    assert_eq!(fails.requests().len(), PATIENCE.attempts as usize);
}

#[test]
fn a_server_that_starts_over_for_ever_is_given_up() {
    let good = content(7);
    let served = good.clone();
    let server = Server::start(move |_| Answer::whole(&served).cut(100_000));
    let error = Case::new().fetch(&thing(&good, &[server.url.clone()]), &options()).unwrap_err();
    assert!(error.to_string().contains("gave up after"), "{error}");
    // The first brought something, the others did not.
    assert_eq!(server.requests().len(), PATIENCE.attempts as usize);
}

#[test]
fn redirects_are_followed_up_to_a_limit() {
    let good = content(8);
    let served = good.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        "/old" => Answer::status(302).header("Location", "/newer"),
        "/newer" => Answer::status(307).header("Location", "/new"),
        "/new" => Answer::file(&served, request),
        _ => Answer::status(301).header("Location", "/circle"),
    });
    let mut case = Case::new();
    let asset = thing(&good, &[format!("{}/old", server.url)]);
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);

    let before = server.requests().len();
    let circle = thing(&good, &[format!("{}/circle", server.url)]);
    let error = Case::new().fetch(&circle, &options()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    assert!(error.to_string().contains("redirects more than"), "{error}");
    assert!(server.requests().len() - before <= 6, "asked {} times", server.requests().len() - before);
}

/// A page to log in, of any length and with status 200.
#[test]
fn a_page_in_place_of_the_file_spoils_nothing() {
    let good = content(61);
    let served = good.clone();
    let server = Server::start(move |request| match (request.path.as_str(), request.before) {
        ("/file", 0) => Answer::file(&served, request).cut(80_000),
        ("/file", 1) => Answer::status(302).header("Location", "/login"),
        ("/file", _) => Answer::file(&served, request),
        _ => Answer::whole(b"\r\n<!DOCTYPE html><html>Please log in")
            .header("Transfer-Encoding", "chunked")
            .in_chunks()
            .without_length(),
    });
    let asset = thing(&good, &[format!("{}/file", server.url)]);
    let mut case = Case::new();
    let error = case.fetch(&asset, &options()).unwrap_err().to_string();
    let says = format!("redirects to {}/login: sends a web page in place of the file", server.url);
    assert!(error.contains(&says), "{error}");
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(80_000), Some(80_000), Some(80_000)]);
}

#[test]
fn a_server_that_ignores_ranges_starts_over() {
    let good = content(9);
    let served = good.clone();
    let server = Server::start(move |request| {
        let answer = Answer::whole(&served);
        if request.before == 0 { answer.cut(70_000) } else { answer }
    });
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(70_000)]);
    assert!(case.said("starts over"), "{:?}", case.log);
}

#[test]
fn without_a_hash_nothing_is_resumed() {
    // The file changes midway, and nothing would tell.
    let (old, new) = (content(10), content(11));
    let (served_old, served_new) = (old.clone(), new.clone());
    let server = Server::start(move |request| match request.before {
        0 | 1 => Answer::file(&served_old, request).cut(80_000),
        _ => Answer::file(&served_new, request),
    });
    let asset = unpublished(thing(&new, &[server.url.clone()]));
    let mut case = Case::new();
    let patience = Patience { attempts: 1, ..PATIENCE };
    case.fetch(&asset, &Options { patience, ..options() }).unwrap_err();
    assert!(fs::read(case.path("partial/thing")).unwrap() == old[..80_000]);
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &new);
    assert_eq!(ranges(&server), [None, None, None]);
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let good = content(12);
    let served = good.clone();
    let server = Server::start(move |request: &Request| match request.before {
        0 => Answer::file(&served, request).cut(80_000),
        1 => {
            let wrong = Request { range: Some((40_000, None)), ..request.clone() };
            Answer::file(&served, &wrong)
        }
        _ => Answer::file(&served, request),
    });
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(80_000), None]);
}

#[test]
fn wrong_bytes_are_removed_and_never_used() {
    let (good, bad) = (content(13), content(14));
    let served = bad.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let error = case.fetch(&asset, &options()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let text = error.to_string();
    for part in [sha256(&good), sha256(&bad), server.url.clone(), "--from FILE".into()] {
        assert!(text.contains(&part), "{part} in: {text}");
    }
    case.assert_has_nothing();
    assert_eq!(find(&case.inputs, &asset).unwrap(), None);
    assert_eq!(case.names("partial"), ["thing.lock"], "the next attempt begins from nothing");
}

#[test]
fn addresses_are_tried_in_order() {
    let (good, bad) = (content(15), content(16));
    let (right, wrong) = (good.clone(), bad);
    let server = Server::start(move |request| match request.path.as_str() {
        "/mirror/thing" => Answer::status(404),
        "/second" => Answer::status(403),
        "/third" => Answer::file(&wrong, request),
        "/fourth" => Answer::file(&right, request),
        _ => Answer::status(500),
    });
    let url = |path: &str| format!("{}{path}", server.url);
    let asset = thing(&good, &[url("/second"), url("/third"), url("/fourth"), url("/fifth")]);
    let mut case = Case::new();
    let mirror = Some(Given::parse(url("/mirror/")));
    let path = case.fetch(&asset, &Options { mirror, ..options() }).unwrap();
    case.assert_has(&asset, &path, &good);
    let asked: Vec<_> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, ["/mirror/thing", "/second", "/third", "/fourth"]);
    assert_eq!(case.inputs.record(&asset).unwrap().unwrap().from, url("/fourth"));
}

#[test]
fn a_dead_host_is_passed_over() {
    let good = content(17);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asset = thing(&good, &[format!("http://{free}/thing"), server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
}

#[test]
fn a_directory_can_be_the_mirror() {
    let good = content(18);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thing"), &good).unwrap();
    let mut case = Case::new();
    let mirror = Some(Given::parse(directory.path()));
    let asset = thing(&good, &[]);
    let path = case.fetch(&asset, &Options { mirror, offline: true, ..options() }).unwrap();
    case.assert_has(&asset, &path, &good);
}

#[test]
fn what_a_bad_mirror_began_does_not_spoil_a_good_one() {
    let (good, bad) = (content(19), content(20));
    let (right, wrong) = (good.clone(), bad);
    let server = Server::start(move |request| match (request.path.as_str(), request.before) {
        ("/bad", 0) => Answer::file(&wrong, request).cut(90_000),
        ("/bad", _) => Answer::status(404),
        _ => Answer::file(&right, request),
    });
    let asset = thing(&good, &[format!("{}/bad", server.url), format!("{}/good", server.url)]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(90_000), Some(90_000), None]);
    assert!(case.said("fetching it from the start"), "{:?}", case.log);
}

#[test]
fn another_size_than_published_is_refused_before_anything_is_given_up() {
    let good = content(21);
    let served = good.clone();
    let server = Server::start(move |request| match (request.path.as_str(), request.before) {
        ("/good", 0) => Answer::file(&served, request).cut(60_000),
        ("/good", _) => Answer::file(&served, request),
        // A page of a captive portal, say.
        _ => Answer::whole(b"<html>Please log in</html>"),
    });
    let mut case = Case::new();
    let patience = Patience { attempts: 1, ..PATIENCE };
    let first = thing(&good, &[format!("{}/good", server.url), format!("{}/portal", server.url)]);
    let error = case.fetch(&first, &Options { patience, ..options() }).unwrap_err();
    assert!(error.to_string().contains("announces 26 bytes instead of 200000"), "{error}");
    assert_eq!(plan(&case.inputs, [&first]).unwrap()[0].to_come(), Some(140_000));
    let path = case.fetch(&first, &options()).unwrap();
    case.assert_has(&first, &path, &good);
    assert_eq!(ranges(&server).last(), Some(&Some(60_000)));
}

#[test]
fn more_bytes_than_published_are_not_taken() {
    let good = content(22);
    let served = [good.clone(), b"more".to_vec()].concat();
    let server = Server::start(move |_| Answer::whole(&served).without_length());
    let mut case = Case::new();
    let error = case.fetch(&thing(&good, &[server.url.clone()]), &options()).unwrap_err();
    assert!(error.to_string().contains("sends more than 200000 bytes"), "{error}");
    case.assert_has_nothing();
}

#[test]
fn a_compressed_answer_is_refused() {
    let good = content(23);
    let served = good.clone();
    let server = Server::start(move |_| Answer::whole(&served).header("Content-Encoding", "gzip"));
    let error = Case::new().fetch(&thing(&good, &[server.url.clone()]), &options()).unwrap_err();
    assert!(error.to_string().contains("gzip"), "{error}");
}

#[test]
fn threads_that_want_the_same_file_fetch_it_once() {
    let good = content(24);
    let served = good.clone();
    let server = Server::start(move |request| {
        std::thread::sleep(Duration::from_millis(100));
        Answer::file(&served, request)
    });
    let asset = thing(&good, &[server.url.clone()]);
    let case = Case::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let path = fetch(&case.inputs, &asset, &options(), &mut |_| Ok(())).unwrap();
                assert!(fs::read(path).unwrap() == good);
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
}

/// A process of its own: [`child`] below, which fetches `thing` as its
/// environment says.
fn process(store: &Path, content: &[u8], url: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "child", "--nocapture"]);
    command.env("FETCH_STORE", store).env("FETCH_URL", url).env("FETCH_SHA256", sha256(content));
    for name in ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "REPLICATE_MIRROR", "FETCH_HUB"]
    {
        command.env_remove(name);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "the other tests run it as a process of its own"]
fn child() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let mut asset = thing(&[0; 200_000], &[variable("FETCH_URL")]);
    asset.hash = Hash::Several(variable("FETCH_SHA256").leak());
    if std::env::var("FETCH_HUB").is_ok() {
        asset.from = &[Address::Hub(HUB_FILE)];
    }
    let inputs = Inputs::of(Path::new(&variable("FETCH_STORE")));
    let options = Options::from_env(&|_, _| Ok(()));
    if let Err(error) = fetch(&inputs, &asset, &options, &mut |_| Ok(())) {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code());
    }
}

#[test]
fn a_killed_process_is_resumed_and_two_processes_fetch_once() {
    let good = content(25);
    let served = good.clone();
    let server = Server::start(move |request| {
        let answer = Answer::file(&served, request);
        if request.before == 0 { answer.stall(120_000) } else { answer }
    });
    let case = Case::new();
    let mut killed = process(case.dir.path(), &good, &server.url).spawn().unwrap();
    let partial = case.path("partial/thing");
    let begun = Instant::now();
    while fs::metadata(&partial).map_or(0, |found| found.len()) < 120_000 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the first process got nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    case.assert_has_nothing();

    let spawn = || process(case.dir.path(), &good, &server.url).spawn().unwrap();
    for process in [spawn(), spawn()] {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(ranges(&server), [None, Some(120_000)], "one of the two went on, the other waited");
    assert_eq!(server.sent()[1], 80_000);
    let asset = thing(&good, &[]);
    case.assert_has(&asset, &case.path(&sha256(&good)), &good);
}

#[test]
fn the_environment_names_a_mirror() {
    let good = content(26);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let case = Case::new();
    let mut process = process(case.dir.path(), &good, "http://127.0.0.1:9/never-asked");
    let output = process.env("REPLICATE_MIRROR", format!("{}/m", server.url)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.requests()[0].path, "/m/thing");
}

#[test]
fn offline_asks_nobody_and_says_what_to_do() {
    let server = Server::start(|_| Answer::status(500));
    let asset = thing(&content(27), &[server.url.clone()]);
    let mut case = Case::new();
    let error = case.fetch(&asset, &Options { offline: true, ..options() }).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    let text = error.to_string();
    for part in ["without --offline", "replicate fetch thing --store ", " --from FILE`", &server.url] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn a_hash_seen_first_is_recorded_and_another_one_refused() {
    let (first, other) = (content(28), content(29));
    let (served_first, served_other) = (first.clone(), other.clone());
    let server = Server::start(move |request| match request.path.as_str() {
        "/first" => Answer::file(&served_first, request),
        _ => Answer::file(&served_other, request),
    });
    let asset = unpublished(thing(&first, &[format!("{}/first", server.url)]));
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &first);
    assert!(case.said("was published") && case.said(&sha256(&first)), "{:?}", case.log);
    assert!(case.inputs.record(&asset).unwrap().unwrap().first_seen);

    fs::remove_file(&path).unwrap();
    let from = Some(Given::parse(format!("{}/other", server.url)));
    let error = case.fetch(&asset, &Options { from: from.clone(), ..options() }).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    let text = error.to_string();
    let record = case.path("index/thing");
    for part in [&sha256(&first), &sha256(&other), "seen first", record.to_str().unwrap()] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    case.assert_has_nothing();
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &first);

    // The remedy works.
    fs::remove_file(&record).unwrap();
    let path = case.fetch(&asset, &Options { from, ..options() }).unwrap();
    case.assert_has(&asset, &path, &other);
}

#[test]
fn content_is_checked_before_it_is_trusted() {
    let good = content(30);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = unpublished(thing(&good, &[server.url.clone()]));
    let mut case = Case::new();
    let check = |_: &Asset, path: &Path| {
        assert!(fs::read(path).unwrap() == good);
        Err("has a sigma that is not symmetric".into())
    };
    let error = case.fetch(&asset, &Options { check: &check, ..options() }).unwrap_err();
    assert!(error.to_string().contains("sigma that is not symmetric"), "{error}");
    assert_eq!(error.exit_code(), EXIT_INPUT);
    assert_eq!(case.inputs.record(&asset).unwrap(), None, "what was refused is not recorded");
    case.assert_has_nothing();
}

#[test]
fn without_a_hash_the_end_must_be_announced() {
    let served = content(31);
    let cut = move || Answer::whole(&served).without_length().cut(1000);
    let named = cut.clone();
    for server in [
        Server::start(move |_| cut()),
        // A coding that announces no end.
        Server::start(move |_| named().header("Transfer-Encoding", "identity")),
    ] {
        let asset = unpublished(thing(&content(31), &[server.url.clone()]));
        let mut case = Case::new();
        let error = case.fetch(&asset, &options()).unwrap_err();
        assert!(error.to_string().contains("does not say how many bytes"), "{error}");
        case.assert_has_nothing();
    }
}

/// A proxy is there for a reason: what it is for is not asked for without it.
#[test]
fn a_proxy_that_cannot_be_used_is_not_passed_by() {
    let server = Server::start(|_| Answer::status(404));
    for (proxy, exempt, asked) in [
        ("nonsense::SECRET", "", false),
        ("ftp://SECRET", "", false),
        ("nonsense::SECRET", "127.0.0.0/8", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let before = server.requests().len();
        let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
            .args(["fetch", "fid-reference", "--from", &server.url, "--store"])
            .arg(dir.path())
            .envs([("http_proxy", proxy), ("no_proxy", exempt)])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_INPUT), "{text}");
        assert_eq!(server.requests().len() > before, asked, "{text}");
        assert!(asked || text.contains("http_proxy holds no address"), "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }
}

/// Many proxies allow tunnels to port 443 alone.
#[test]
fn a_proxy_is_asked_for_plain_addresses_themselves() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://us%20er:pass@{}", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let answers = [
            "302 Found\r\nLocation: http://other.invalid:81/c d?e=f\r\nContent-Length: 0",
            "404 Not Found\r\nContent-Length: 0",
        ];
        answers.map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                head.push(byte[0]);
            }
            stream.write_all(format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
            String::from_utf8(head).unwrap()
        })
    });
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(["fetch", "fid-reference", "--from", "http://me:secret@files.invalid/a/b", "--store"])
        .arg(dir.path())
        .envs([("http_proxy", &*proxy), ("no_proxy", "")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_INPUT), "{text}");
    assert!(text.contains("answers 404"), "{text}");
    let [first, second] = serve.join().unwrap().map(|head| head.to_ascii_lowercase());
    assert!(first.starts_with("get http://files.invalid/a/b http/1.1\r\n"), "{first}");
    assert!(second.starts_with("get http://other.invalid:81/c%20d?e=f http/1.1\r\n"), "{second}");
    for (head, host) in [(&first, "files.invalid"), (&second, "other.invalid:81")] {
        assert!(head.contains(&format!("\r\nhost: {host}\r\n")), "{head}");
        // `us er:pass` in Base64.
        assert!(head.contains("\r\nproxy-authorization: basic dxmgzxi6cgfzcw==\r\n"), "{head}");
    }
    // The server's own secret goes to no other server.
    assert!(first.contains("\r\nauthorization: basic ") && !second.contains("\r\nauthorization:"));
}

/// The host that is not found is the proxy's.
#[test]
fn a_proxy_without_an_address_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_replicate"))
        .args(["fetch", "fid-reference", "--from", "http://127.0.0.1:9/a", "--store"])
        .arg(dir.path())
        .envs([("http_proxy", "http://proxy.invalid:3128"), ("no_proxy", "")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_INPUT), "{text}");
    assert!(text.contains("through the environment's proxy: no such host"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_store_that_everybody_may_change_is_remarked_upon() {
    for (mask, said) in [("0", true), ("022", false)] {
        let dir = tempfile::tempdir().unwrap();
        let (program, store) = (env!("CARGO_BIN_EXE_replicate"), dir.path().join("store"));
        let line = format!(
            "umask {mask}; exec '{program}' fetch fid-reference --offline --store '{}'",
            store.display()
        );
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_INPUT), "{text}");
        assert_eq!(text.contains("everybody may write"), said, "{text}");
    }
}

#[test]
fn a_file_can_be_given() {
    let (good, bad) = (content(32), content(33));
    let elsewhere = tempfile::tempdir().unwrap();
    let path = |name: &str| elsewhere.path().join(name);
    fs::write(path("good"), &good).unwrap();
    fs::write(path("bad"), &bad).unwrap();
    let server = Server::start(|_| Answer::status(500));
    let asset = thing(&good, &[server.url.clone()]);
    let given = |name: &str| Options { from: Some(Given::File(path(name))), offline: true, ..options() };
    let mut case = Case::new();
    assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let faults =
        [("bad", sha256(&bad)), ("absent", "cannot be read".into()), ("pipe", "is not a file".into())];
    for (name, says) in faults {
        let error = case.fetch(&asset, &given(name)).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_INPUT);
        assert!(error.to_string().contains(path(name).to_str().unwrap()), "{error}");
        assert_eq!(error.to_string().matches(&says).count(), 1, "{error}");
        assert!(!case.said(&says), "the error says it: {:?}", case.log);
        assert!(error.to_string().contains("name another file") && error.to_string().contains(&server.url));
        case.assert_has_nothing();
    }
    let found = case.fetch(&asset, &given("good")).unwrap();
    case.assert_has(&asset, &found, &good);
    assert!(fs::read(path("bad")).unwrap() == bad && fs::read(path("good")).unwrap() == good);
    assert_eq!(server.requests().len(), 0, "a given file is taken instead of the addresses");
}

#[test]
fn an_address_can_be_given() {
    let good = content(34);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &["http://127.0.0.1:9/never-asked".to_string()]);
    let from = Some(Given::parse(format!("{}/elsewhere", server.url)));
    let mut case = Case::new();
    let path = case.fetch(&asset, &Options { from, ..options() }).unwrap();
    case.assert_has(&asset, &path, &good);
}

#[test]
fn an_altered_file_is_noticed_and_replaced() {
    let good = content(35);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let path = case.fetch(&asset, &options()).unwrap();
    let mut altered = good.clone();
    altered[123_456] ^= 1;
    fs::write(&path, &altered).unwrap();
    let error = find(&case.inputs, &asset).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_INPUT);
    assert!(error.to_string().contains("replicate fetch thing"), "{error}");
    let again = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &again, &good);
    assert!(fs::read(&again).unwrap() == good, "what was altered is replaced");
}

#[test]
fn a_fetch_can_be_stopped_and_goes_on_later() {
    let good = content(36);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &[server.url.clone()]);
    let mut case = Case::new();
    let stop = |progress: Progress<'_>| match progress {
        Progress::Bytes { have, .. } if have > 0 => Err(Error::Stopped { cell: "thing".into() }),
        _ => Ok(()),
    };
    let error = fetch(&case.inputs, &asset, &options(), &mut { stop }).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    let have = fs::metadata(case.path("partial/thing")).unwrap().len() as usize;
    assert!(have > 0 && have < good.len());
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    assert_eq!(ranges(&server), [None, Some(have)]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_to_be_full() {
    let good = content(37);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request));
    let asset = thing(&good, &[server.url.clone(), server.url.clone()]);
    let mut case = Case::new();
    fs::create_dir_all(case.path("partial")).unwrap();
    std::os::unix::fs::symlink("/dev/full", case.path("partial/thing")).unwrap();
    let error = case.fetch(&asset, &options()).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_RUN);
    let text = error.to_string();
    assert!(text.contains("partial/thing") && text.contains("free some space"), "{text}");
    assert_eq!(server.requests().len(), 1, "another address would not help");
    case.assert_has_nothing();
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let case = Case::new();
    fs::create_dir_all(case.path("")).unwrap();
    fs::write(case.path("partial"), "in the way").unwrap();
    let error = fetch(&case.inputs, &thing(b"x", &[]), &options(), &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.exit_code(), EXIT_RUN);
    assert!(error.to_string().contains("partial"), "{error}");
}

const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
const HUB_FILE: HubFile = HubFile {
    kind: hf_hub::RepoType::Dataset,
    repo: "owner/name",
    revision: REVISION,
    path: "dir/train.parquet",
};
const HUB_PATH: &str =
    "/datasets/owner/name/resolve/0123456789abcdef0123456789abcdef01234567/dir/train.parquet";

/// As the hub answers: the commit, and an ETag that is the content's SHA-256.
fn hub_answer(content: &[u8], request: &Request) -> Answer {
    if request.path != HUB_PATH {
        return Answer::status(404);
    }
    let etag = format!("\"{}\"", sha256(content));
    Answer::file(content, request).header("ETag", &etag).header("X-Repo-Commit", REVISION)
}

fn hub_asset(content: &[u8]) -> Asset {
    Asset { from: &[Address::Hub(HUB_FILE)], ..thing(content, &[]) }
}

fn hub_options(server: &Server, case: &Case) -> Options<'static> {
    let hub = Hub { endpoint: server.url.clone(), cache: case.dir.path().join("hub"), offline: false };
    Options { hub, ..options() }
}

#[test]
fn the_hub_is_used_as_its_variables_say() {
    let good = content(40);
    let served = good.clone();
    let server = Server::start(move |request| hub_answer(&served, request));
    let home = tempfile::tempdir().unwrap();
    let run = |store: &Path, endpoint: &str, offline: &str| {
        let mut process = process(store, &good, "http://127.0.0.1:9");
        process.env("FETCH_HUB", "1").env("HF_HOME", home.path());
        process.env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", offline);
        process.output().unwrap()
    };

    let case = Case::new();
    let output = run(case.dir.path(), &server.url, "1");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_INPUT), "{text}");
    assert!(text.contains("HF_HUB_OFFLINE"), "{text}");
    assert_eq!(server.requests().len(), 0);

    let output = run(case.dir.path(), &server.url, "0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    case.assert_has(&hub_asset(&good), &case.path(&sha256(&good)), &good);
    assert!(!home.path().join("hub").exists(), "what a server says names no file of the cache");

    // Another store takes it from the cache, where Python's tools have put it, with no network at all.
    let snapshot = home.path().join(format!("hub/datasets--owner--name/snapshots/{REVISION}/dir"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("train.parquet"), &good).unwrap();
    let asked = server.requests().len();
    let other = Case::new();
    let output = run(other.dir.path(), "http://127.0.0.1:9", "1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    other.assert_has(&hub_asset(&good), &other.path(&sha256(&good)), &good);
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn hub_variables_mean_what_they_mean_to_python() {
    let hub = |set: &[(&str, &str)]| {
        let set: Vec<_> = set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::from_env(&move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.into()))
    };
    assert_eq!(hub(&[]).endpoint, "https://huggingface.co");
    assert!(hub(&[]).cache.ends_with(".cache/huggingface/hub"));
    assert_eq!(hub(&[("HF_ENDPOINT", "http://m/")]).endpoint, "http://m");
    assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(hub(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]).cache, Path::new("/h/hub"));
    assert_eq!(hub(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    for (value, offline) in [("1", true), ("true", true), ("ON", true), ("0", false), ("", false)] {
        assert_eq!(hub(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
    }
}

#[test]
fn a_spoilt_hub_cache_is_not_believed() {
    let (good, bad) = (content(41), content(42));
    let served = good.clone();
    let server = Server::start(move |request| hub_answer(&served, request));
    let mut case = Case::new();
    let snapshot = case.dir.path().join(format!("hub/datasets--owner--name/snapshots/{REVISION}/dir"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("train.parquet"), bad).unwrap();
    let asset = hub_asset(&good);
    let path = case.fetch(&asset, &hub_options(&server, &case)).unwrap();
    case.assert_has(&asset, &path, &good);
    assert!(case.said("train.parquet has 200000 bytes with the SHA-256"), "{:?}", case.log);
}

/// Headers of the hub name files in the cache of its own tools; here they name nothing.
#[test]
fn headers_of_the_hub_name_no_files() {
    let (good, evil) = (content(43), content(44));
    for served in [good.clone(), evil] {
        let bytes = served.clone();
        let server = Server::start(move |request| {
            let answer = Answer::file(&bytes, request).header("ETag", "\"../../../../../precious\"");
            answer.header("X-Repo-Commit", "../../../../elsewhere")
        });
        let mut case = Case::new();
        fs::write(case.dir.path().join("precious"), "mine").unwrap();
        let options = hub_options(&server, &case);
        let before = everything(case.dir.path());
        match case.fetch(&hub_asset(&good), &options) {
            Ok(path) => case.assert_has(&hub_asset(&good), &path, &good),
            Err(error) => {
                assert_eq!(error.exit_code(), EXIT_INPUT);
                assert!(error.to_string().contains(&sha256(&served)), "{error}");
                case.assert_has_nothing();
            }
        }
        assert_eq!(fs::read(case.dir.path().join("precious")).unwrap(), b"mine");
        let outside: Vec<_> = everything(case.dir.path())
            .into_iter()
            .filter(|path| !before.contains(path))
            .filter(|path| !path.starts_with(case.path("")) && *path != case.dir.path().join("format"))
            .collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
}

fn everything(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything(&path));
        }
        found.push(path);
    }
    found
}

/// Answers that do not end: of a published size, and of an unknown one.
#[test]
fn no_server_decides_how_much_is_written() {
    let good = content(45);
    let served = vec![7; 200 << 20];
    let server = Server::start(move |_| {
        let answer = Answer::whole(&served).without_length();
        answer.header("Transfer-Encoding", "chunked").in_chunks()
    });
    let mut case = Case::new();
    let options_of_hub = hub_options(&server, &case);
    for (asset, options, most) in [
        (hub_asset(&good), options_of_hub, 200_000),
        (unpublished(thing(&good, &[server.url.clone()])), options(), 1 << 27),
    ] {
        let error = case.fetch(&asset, &options).unwrap_err();
        assert!(error.to_string().contains(&format!("sends more than {most} bytes")), "{error}");
        assert_eq!(case.names("partial"), ["thing.lock"]);
        case.assert_has_nothing();
    }
    let long = Server::start(|_| Answer::whole(b"x").header("Content-Length", "999999999999"));
    let asset = unpublished(thing(&good, &[long.url.clone()]));
    let error = case.fetch(&asset, &options()).unwrap_err();
    assert!(!error.to_string().contains("sent"), "{error}");
}

/// One byte now and then is no progress.
#[test]
fn a_server_that_drips_is_given_up() {
    let good = content(46);
    let served = good.clone();
    let server = Server::start(move |request| Answer::file(&served, request).drip(Duration::from_millis(50)));
    let begun = Instant::now();
    let asset = thing(&good, &[server.url.clone()]);
    let error = Case::new().fetch(&asset, &Options { patience: HASTE, ..options() }).unwrap_err();
    assert!(error.to_string().contains("sends less than a kilobyte a second"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// A user's password and a signature are for the server, and for nobody else.
#[test]
fn secrets_of_addresses_are_neither_shown_nor_kept() {
    let good = content(47);
    let served = good.clone();
    let server = Server::start(move |request| match request.path.starts_with("/a?X-Amz-Signature=SECRET") {
        true => Answer::file(&served, request),
        false => Answer::status(404),
    });
    let asset = thing(&good, &[]);
    for (path, works) in [("a", true), ("b", false)] {
        let mut case = Case::new();
        let address = format!("{}/{path}?X-Amz-Signature=SECRET", server.url.replace("://", "://u:SECRET@"));
        let from = Some(Given::parse(&address));
        let result = case.fetch(&asset, &Options { from, ..options() });
        assert_eq!(result.is_ok(), works);
        let said = format!("{:?} {:?}", case.log, result.map_err(|error| error.to_string()));
        assert!(!said.contains("SECRET") && said.contains(&format!("/{path}?…")), "{said}");
        for file in everything(case.dir.path()).iter().filter(|path| path.is_file()) {
            let bytes = fs::read(file).unwrap();
            assert!(!bytes.windows(6).any(|part| part == b"SECRET"), "{}", file.display());
        }
    }
}

#[test]
fn redirects_with_blanks_are_followed_and_odd_ones_explained() {
    let good = content(48);
    let served = good.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        "/start" => Answer::status(302).header("Location", "the file?x=a b"),
        "/the%20file?x=a%20b" => Answer::file(&served, request),
        "/file" => Answer::status(302).header("Location", "file:///etc/passwd"),
        "/ftp" => Answer::status(301).header("Location", "ftp://127.0.0.1/x"),
        "/dead" => Answer::status(302).header("Location", "http://127.0.0.1:1/x?sig=SECRET"),
        _ => Answer::status(302),
    });
    let mut case = Case::new();
    let asset = thing(&good, &[format!("{}/start", server.url)]);
    let path = case.fetch(&asset, &options()).unwrap();
    case.assert_has(&asset, &path, &good);
    for (path, says) in [
        ("file", "redirects to file:"),
        ("ftp", "redirects to ftp:"),
        ("dead", "redirects to http://127.0.0.1:1/x?…: Connection refused"),
        ("x", "redirects to nothing"),
    ] {
        let error = Case::new().fetch(&thing(&good, &[format!("{}/{path}", server.url)]), &options());
        let text = error.as_ref().unwrap_err().to_string();
        assert!(text.contains(says) && !text.contains("SECRET"), "{text}");
    }
}

/// A record of a store that somebody else made names a file of this store, or none.
#[test]
fn a_record_moves_no_file() {
    let good = content(49);
    let mut case = Case::new();
    let precious = case.dir.path().join("precious");
    fs::write(&precious, "mine").unwrap();
    fs::create_dir_all(case.path("index")).unwrap();
    for name in
        ["../../precious".to_string(), precious.display().to_string(), "AB".repeat(32), "\u{1b}[31m".into()]
    {
        let record = serde_json::json!({ "sha256": name, "bytes": 4, "from": "x", "first_seen": true });
        fs::write(case.path("index/thing"), record.to_string()).unwrap();
        for offline in [true, false] {
            let error = case.fetch(&unpublished(thing(&good, &[])), &Options { offline, ..options() });
            let text = error.unwrap_err().to_string();
            assert!(text.contains("the record of thing") && text.contains("remove it"), "{text}");
            assert!(!text.contains('\u{1b}'));
        }
        assert_eq!(fs::read(&precious).unwrap(), b"mine");
    }
    // No text, and none at all: said with the same remedy, and waited for by nobody.
    let path = case.path("index/thing");
    let text = |path: &Path| fs::write(path, b"\xff\xfe").unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    for make in [&text as &dyn Fn(&Path), &directory, &pipe] {
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        make(&path);
        let error = case.fetch(&unpublished(thing(&good, &[])), &options()).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("remove it"), "{error}");
    }
}

#[test]
fn a_directory_in_the_place_of_a_file_makes_way() {
    let good = content(50);
    let mut case = Case::new();
    let asset = thing(&good, &[]);
    fs::create_dir_all(case.path(asset.sha256().unwrap())).unwrap();
    assert!(find(&case.inputs, &asset).unwrap_err().to_string().contains("not a file"));
    let path = case.dir.path().join("given");
    fs::write(&path, &good).unwrap();
    let from = Some(Given::File(path));
    let there = case.fetch(&asset, &Options { from, ..options() }).unwrap();
    assert_eq!(fs::read(there).unwrap(), good);
}

#[test]
fn the_table_of_assets_is_well_formed() {
    let is_hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
    };
    let mut ids = BTreeSet::new();
    for asset in assets() {
        assert!(ids.insert(asset.id), "{} twice", asset.id);
        assert!(asset.id.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'));
        assert!(asset.sha256().is_none_or(|sha256| is_hex(sha256, 64)), "{}", asset.id);
        assert!(asset.sha256().is_none() || asset.bytes.is_some(), "{}", asset.id);
        assert!(!asset.from.is_empty(), "{}", asset.id);
        for address in asset.from {
            match address {
                Address::Url(url) => assert!(url.starts_with("https://"), "{url}"),
                Address::Hub(file) => {
                    assert!(is_hex(file.revision, 40), "{} is pinned to a commit", asset.id);
                    assert_eq!(file.repo.split('/').count(), 2);
                }
            }
        }
    }
    let unpublished: Vec<_> = assets().iter().filter(|a| a.sha256().is_none()).map(|a| a.id).collect();
    assert_eq!(unpublished, ["fid-reference"]);
    // The hub states the sum of the two files.
    let parquet: u64 = select("cifar10-parquet").unwrap().iter().filter_map(|asset| asset.bytes).sum();
    assert_eq!(parquet, 143_646_105);
}

#[test]
fn assets_are_chosen_by_id_or_family() {
    let ids = |what: &str| select(what).unwrap().iter().map(|asset| asset.id).collect::<Vec<_>>();
    assert_eq!(ids("edm"), ["edm"]);
    assert_eq!(ids("cifar10"), ["cifar10"], "an id is that asset alone");
    assert_eq!(ids("cifar100-parquet"), ["cifar100-parquet-train", "cifar100-parquet-test"]);
    assert_eq!(ids("all").len(), assets().len());
    let error = select("cifar11").unwrap_err();
    assert_eq!(error.exit_code(), EXIT_USAGE);
    assert!(error.to_string().contains("fid-reference"), "{error}");
}

/// EDM's licence forbids commercial use, and goes with what is made from its checkpoint.
#[test]
fn every_asset_has_its_licence() {
    for asset in replicate::store::fetch::assets() {
        assert!(!asset.licence.is_empty(), "{}", asset.id);
    }
    let edm = named("edm").unwrap();
    assert_eq!(edm.licence, "CC BY-NC-SA 4.0");
    assert_eq!(replicate::store::fetch::licence_of(edm.sha256().unwrap()), Some(edm.licence));
    assert_eq!(replicate::store::fetch::licence_of(&"0".repeat(64)), None);
}
