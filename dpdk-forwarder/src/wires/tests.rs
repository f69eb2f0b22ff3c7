use std::fs;
use std::path::PathBuf;

use ferrule_dataplane::Settings;
use tempfile::TempDir;

use super::*;
use crate::config::parse_wire;

#[test]
fn a_put_during_the_start_neither_takes_a_name_of_the_file_nor_ends_the_start() {
    let place = Fixture::new();
    let journal = place.journal();
    start(Some(journal)).put(place.wire("kept"), None).unwrap();

    let wires = start(Some(place.journal()));
    let starting = wires.start(&[place.wire("of-file")]);
    assert_eq!(names(&wires), ["kept", "of-file"], "listed from the beginning");
    assert!(matches!(wires.put(place.wire("of-file"), None), Err(ChangeError::FromFile(_))));
    let changed = WireSpec { labels: [("app".to_owned(), "nat".to_owned())].into(), ..place.wire("kept") };
    wires.put(changed.clone(), None).unwrap();
    wires.finish_start(starting);
    let listed = wires.list();
    assert_eq!(listed[0].status.spec, changed, "who came later has its way");
    assert_eq!((listed[0].origin, listed[1].origin), (Origin::Admin { persistent: true }, Origin::File));
}

#[test]
fn of_puts_of_one_wire_the_last_one_counts_and_one_that_fails_goes_back_to_what_was_there() {
    let place = Fixture::new();
    let wires = start(Some(place.journal()));
    let first = place.wire("w");
    wires.put(first.clone(), None).unwrap();
    // Another wire is put meanwhile, so that its record comes behind.
    let impossible = place.impossible_wire("w");
    let asked = wires.begin_put(impossible, None).unwrap();
    wires.put(place.wire("other"), None).unwrap();
    let answers = await_answers(std::slice::from_ref(&asked), ANSWER_TIMEOUT);
    let error = wires.finish_put(asked, answers.into_iter().next().unwrap()).unwrap_err();
    assert!(matches!(error, ChangeError::Engine(EngineError::End { .. })), "{error}");
    assert_eq!(wires.list()[1].status.spec, first);
    assert!(!wires.list()[1].status.ends[0].word().is_empty() && !is_failed(&wires, "w"));

    // One that is taken back before it failed: the other one sees to the wire.
    let asked = wires.begin_put(place.impossible_wire("w"), None).unwrap();
    assert_eq!(wires.remove("w").unwrap(), Removed::Wire);
    let answers = await_answers(std::slice::from_ref(&asked), ANSWER_TIMEOUT);
    wires.finish_put(asked, answers.into_iter().next().unwrap()).unwrap_err();
    assert_eq!(names(&wires), ["other"]);
    drop(wires);
    assert_eq!(place.journal().wires().map(|wire| wire.name.as_str()).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn a_wire_that_cannot_be_made_is_listed_as_it_was_until_another_try_has_ended() {
    let place = Fixture::new();
    let wires = start(None);
    wires.apply(&[place.impossible_wire("bad"), place.wire("good")]).unwrap();
    assert!(is_failed(&wires, "bad") && !is_failed(&wires, "good"));
    wires.retry();
    assert!(is_failed(&wires, "bad"));
    place.make_possible("bad");
    wires.retry();
    assert!(!is_failed(&wires, "bad"));
    assert_eq!(wires.apply(&[place.wire("good")]).unwrap(), Changes { removed: 1, ..Changes::default() });
    assert_eq!(names(&wires), ["good"]);
}

#[test]
fn a_wire_that_took_too_long_says_what_became_of_it_also_when_nobody_tries_it_again() {
    let place = Fixture::new();
    let wires = start(None);
    let put = |name: &str, spec: WireSpec| {
        let asked = wires.begin_put(spec, Some(false)).unwrap();
        let late = EngineError::StillMaking(name.to_owned());
        assert!(matches!(wires.finish_put(asked, Err(late)), Err(ChangeError::Engine(EngineError::StillMaking(_)))));
    };
    put("never", place.impossible_wire("never"));
    put("at-last", place.wire("at-last"));
    let reason = |name: &str| wires.entries().get(name).unwrap().failure.clone().map(|failure| failure.problem);
    assert!(["never", "at-last"].into_iter().all(|name| reason(name).unwrap().contains("still being made")));
    let end = Instant::now() + ANSWER_TIMEOUT;
    while !lock(&wires.late).is_empty() {
        assert!(Instant::now() < end, "the engine answers");
        wires.retry();
    }
    let problem = reason("never").unwrap();
    assert!(problem.contains("never-dir") && !problem.contains("still being made"), "{problem}");
    assert_eq!(reason("at-last"), None);
    assert!(is_failed(&wires, "never") && !is_failed(&wires, "at-last"));
}

fn start(journal: Option<Journal>) -> Wires {
    Wires::new(Engine::start(&Settings::new(vec![0])).unwrap(), journal)
}

fn names(wires: &Wires) -> Vec<String> {
    wires.list().into_iter().map(|listed| listed.status.spec.name).collect()
}

fn is_failed(wires: &Wires, name: &str) -> bool {
    let listed = wires.list();
    let wire = listed.iter().find(|listed| listed.status.spec.name == name).expect("it is listed");
    wire.status.ends.iter().any(|end| end.word() == "failed")
}

/// A directory with the sockets and the journal of a forwarder without a daemon around it.
struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn journal(&self) -> Journal {
        Journal::open(&self.path("wires.journal")).unwrap()
    }

    fn wire(&self, name: &str) -> WireSpec {
        let end = |end: usize| {
            let socket = self.path(&format!("{name}-{end}.sock"));
            format!("{{memif: {{socket: {}, role: server}}}}", socket.display())
        };
        parse_wire(&format!("{{name: {name}, ends: [{}, {}]}}", end(0), end(1))).unwrap()
    }

    /// A directory is where its first socket should be.
    fn impossible_wire(&self, name: &str) -> WireSpec {
        let socket = self.path(&format!("{name}-dir"));
        fs::create_dir_all(&socket).unwrap();
        let ends = [socket.display().to_string(), format!("'@{}'", self.path(name).display())]
            .map(|socket| format!("{{memif: {{socket: {socket}, role: server}}}}"));
        parse_wire(&format!("{{name: {name}, ends: [{}, {}]}}", ends[0], ends[1])).unwrap()
    }

    fn make_possible(&self, name: &str) {
        fs::remove_dir(self.path(&format!("{name}-dir"))).unwrap();
    }
}
