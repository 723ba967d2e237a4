//! What goes on: events, logs, processes in containers.

use futures_util::stream::BoxStream;
use tokio::io::AsyncWriteExt as _;

use super::{PRINTED, Runs, Spec, Suite, fails, next, ok};
use crate::engine::{Chunk, ContainerEvent, ContainerState, Exec, ExecRequest, LogOptions};
use crate::fault::{Fault, FaultKind};
use crate::ownership::Selector;

/// Standard output and standard error of something.
#[derive(Debug, Default, PartialEq, Eq)]
struct Text {
    out: String,
    err: String,
}

async fn read(mut output: BoxStream<'static, Result<Chunk, Fault>>, lines: usize) -> Text {
    let mut text = Text::default();
    while text.out.lines().count() + text.err.lines().count() < lines || !text.out.ends_with('\n') {
        match next(&mut output, "output goes on").await {
            Some(Chunk::Stdout(bytes)) => text.out.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Chunk::Stderr(bytes)) => text.err.push_str(&String::from_utf8_lossy(&bytes)),
            None => break,
        }
    }
    text
}

impl Suite<'_> {
    pub(super) async fn processes(&self) {
        self.nothing_is_missed_once_a_watch_stands().await;
        self.a_container_is_started_again().await;
        self.logs_are_read().await;
        self.logs_are_followed_until_the_container_ends().await;
        self.processes_run_and_tell_their_exit_code().await;
        self.processes_read_standard_input_until_it_is_closed().await;
        self.processes_need_a_running_container().await;
    }

    async fn nothing_is_missed_once_a_watch_stands(&self) {
        let seen = self.fixture.container(self.spec("watched", "watched")).await;
        let other = self.fixture.container(self.spec("other", "other")).await;
        let foreign = self.fixture.container(self.foreign("watched", "foreign")).await;
        let selector = self.preview("watched");
        let mut watch = ok(self.engine.watch(&selector).await, "a watch is set up");
        for container in [&other, &foreign, &seen] {
            self.fixture.kill(container).await;
        }
        let mut event = None;
        while event.as_ref().is_none_or(|event: &ContainerEvent| event.action != "die") {
            event = next(&mut watch, "an event comes").await;
            let id = event.as_ref().map(|event| event.id.as_str());
            assert_eq!(id, Some(seen.as_str()), "only events of what is meant come");
        }
        self.clear("watched").await;
        loop {
            let event = next(&mut watch, "the end of a container is told").await;
            assert_eq!(event.as_ref().map(|event| &event.id), Some(&seen));
            if event.is_some_and(|event| event.action == "destroy") {
                break;
            }
        }
        let started = self.fixture.container(self.spec("watched", "late")).await;
        loop {
            let event = next(&mut watch, "a container that is made later is watched too").await;
            if event == Some(ContainerEvent { id: started.clone(), action: "start".to_owned() }) {
                break;
            }
        }
        ok(self.engine.remove(&Selector::App(self.fixture.app().to_owned()), &[]).await, "an application is removed");
        self.fixture.take(&foreign).await;
    }

    async fn a_container_is_started_again(&self) {
        let id = self.fixture.container(self.spec("again", "again")).await;
        let mut watch = ok(self.engine.watch(&self.preview("again")).await, "a watch is set up");
        ok(self.engine.restart(&id).await, "a container is started again");
        for action in ["die", "start"] {
            while next(&mut watch, "an event comes").await.is_some_and(|event| event.action != action) {}
        }
        let now = self.only("again").await;
        assert_eq!((now.id, now.state), (id.clone(), ContainerState::Running), "it is the same one");
        self.clear("again").await;
        ok(self.engine.restart(&id).await, "one that is gone is none to start");
    }

    async fn logs_are_read(&self) {
        let id = self.fixture.container(Spec { runs: Runs::Prints, ..self.spec("logs", "logs") }).await;
        // Waits until all is written.
        let follow = LogOptions { follow: true, ..LogOptions::default() };
        read(ok(self.engine.logs(&id, &follow).await, "logs"), PRINTED.len()).await;

        let both = Text { out: [PRINTED[0], PRINTED[2]].concat(), err: PRINTED[1].to_owned() };
        let id = id.as_str();
        let logs = |options| async move { read(ok(self.engine.logs(id, &options).await, "logs"), usize::MAX).await };
        assert_eq!(logs(LogOptions::default()).await, both, "all that was written, each on its stream");
        let last = logs(LogOptions { tail: Some(1), ..LogOptions::default() }).await;
        assert_eq!(last, Text { out: PRINTED[2].to_owned(), err: String::new() }, "only the last line");
        let none = logs(LogOptions { since: Some(4_000_000_000), ..LogOptions::default() }).await;
        assert_eq!(none, Text::default(), "nothing was written after that time");
        let stamped = logs(LogOptions { timestamps: true, tail: Some(1), ..LogOptions::default() }).await;
        let (time, line) = stamped.out.split_once(' ').unwrap_or_default();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "the time is in front of each line: {stamped:?}");
        assert_eq!(line, PRINTED[2]);
        let missing = self.engine.logs("no-such-container", &LogOptions::default()).await;
        fails(missing, FaultKind::NotFound, "logs of what is not there fail at once");
        self.clear("logs").await;
    }

    async fn logs_are_followed_until_the_container_ends(&self) {
        let id = self.fixture.container(Spec { runs: Runs::Prints, ..self.spec("follow", "follow") }).await;
        let follow = LogOptions { follow: true, ..LogOptions::default() };
        let mut logs = ok(self.engine.logs(&id, &follow).await, "logs are followed");
        assert!(next(&mut logs, "what is written comes").await.is_some());
        self.fixture.kill(&id).await;
        while next(&mut logs, "the stream ends with the container").await.is_some() {}
        // A quiet container: the answer comes before the first line does.
        let quiet = self.fixture.container(self.spec("follow", "quiet")).await;
        let logs = tokio::time::timeout(super::PATIENCE, self.engine.logs(&quiet, &follow)).await;
        assert!(matches!(logs, Ok(Ok(_))), "following does not wait for the first line");
        self.clear("follow").await;
    }

    async fn exec(&self, id: &str, argv: &[&str]) -> (i64, Text) {
        let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        self.exec_with(id, &ExecRequest { argv, ..ExecRequest::default() }).await
    }

    async fn exec_with(&self, id: &str, request: &ExecRequest) -> (i64, Text) {
        let Exec { output, input, id } = ok(self.engine.exec(id, request).await, "a process starts");
        assert!(input.is_none(), "standard input that was not asked for");
        let text = read(output, usize::MAX).await;
        (ok(self.engine.exec_exit_code(&id).await, "a process tells its exit code"), text)
    }

    async fn processes_run_and_tell_their_exit_code(&self) {
        let id = self.fixture.container(self.spec("exec", "exec")).await;
        let (code, text) = self.exec(&id, &["echo", "$HOME", "two words"]).await;
        assert_eq!((code, text.out.as_str()), (0, "$HOME two words\n"), "no shell looks at the arguments");
        let (code, text) = self.exec(&id, &["sh", "-c", "echo no >&2; exit 3"]).await;
        assert_eq!((code, text), (3, Text { out: String::new(), err: "no\n".into() }), "exit code and standard error");
        let request = |argv: &[&str]| ExecRequest {
            argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
            workdir: Some("/tmp".into()),
            env: vec!["WORD=value=1".into()],
            user: Some("0".into()),
            stdin: false,
        };
        let (code, text) = self.exec_with(&id, &request(&["pwd"])).await;
        assert_eq!((code, text.out.as_str()), (0, "/tmp\n"), "the working directory");
        let (code, text) = self.exec_with(&id, &request(&["sh", "-c", "echo $WORD"])).await;
        assert_eq!((code, text.out.as_str()), (0, "value=1\n"), "the additional environment");
        let (code, _) = self.exec(&id, &["/no/such/program"]).await;
        assert!([126, 127].contains(&code), "a program that is not there: {code}");
        self.clear("exec").await;
    }

    async fn processes_read_standard_input_until_it_is_closed(&self) {
        let id = self.fixture.container(self.spec("stdin", "stdin")).await;
        let request = ExecRequest { argv: vec!["cat".into()], stdin: true, ..ExecRequest::default() };
        let Exec { output, input, id } = ok(self.engine.exec(&id, &request).await, "a process starts");
        let Some(mut input) = input else { panic!("standard input was asked for") };
        // More than any buffer on the way holds.
        let line = "0123456789abcde\n".repeat(16 * 1024);
        let typing = async move {
            assert!(input.write_all(line.as_bytes()).await.is_ok(), "standard input takes all");
            drop(input);
            line
        };
        let (line, text) = tokio::join!(typing, read(output, usize::MAX));
        assert!(text.out == line, "all of standard input arrives: {} of {} bytes", text.out.len(), line.len());
        assert_eq!(ok(self.engine.exec_exit_code(&id).await, "exit code"), 0, "dropping standard input ends it");
        self.clear("stdin").await;
    }

    async fn processes_need_a_running_container(&self) {
        let request = ExecRequest { argv: vec!["echo".into()], ..ExecRequest::default() };
        let missing = self.engine.exec("no-such-container", &request).await;
        fails(missing, FaultKind::NotFound, "a process in a container that is not there");
        let made = self.fixture.container(Spec { only_made: true, ..self.spec("stopped", "stopped") }).await;
        let stopped = self.engine.exec(&made, &request).await;
        fails(stopped, FaultKind::Conflict, "a process in a container that does not run");
        let unknown = self.engine.exec_exit_code("0123456789abcdef").await;
        fails(unknown, FaultKind::NotFound, "the exit code of a process that there was not");
        self.clear("stopped").await;
    }
}
