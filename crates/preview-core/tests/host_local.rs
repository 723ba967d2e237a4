//! This machine as a host.
use preview_core::host::{Change, Entry, Host, Query, local};
use preview_core::lock::{Acquired, Holder, Lock, shell::ShellLock};
use preview_core::secret::Secret;
use std::time::{Duration, Instant};

#[tokio::test]
async fn smoke() {
    for shell in [vec!["dash"], vec!["bash"], vec!["busybox", "sh"]] {
        let t = Instant::now();
        let host = local::connect_with_shell(shell.iter().map(Into::into).collect()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let base = format!("{}/ba se", dir.path().display());
        let q = Query { read: vec!["app/*/state.json".into()], list: vec!["app/*/files/*".into()] };
        println!("{:?}", host.survey(&base, &q).await);
        host.apply(&[Change::Write {
            path: format!("{base}/app/pr-1/state.json"),
            content: Secret::new(b"{}".to_vec()),
            mode: 0o600,
        }])
        .await
        .unwrap();
        println!(
            "{:?}",
            host.upload(
                &format!("{base}/app/pr-1/files/abc"),
                &[Entry { source: Some("src".into()), target: "x/src".into() }]
            )
            .await
        );
        println!("{:?}", host.survey(&base, &q).await);
        println!("{:?}", t.elapsed());
        let lock = ShellLock::new(host.clone());
        let path = format!("{base}/.lock");
        let h = |who: &str| Holder { who: who.into(), why: "w".into(), since: "s".into() };
        let Acquired::Held(lease) = lock.acquire(&path, &h("a"), Duration::ZERO, &|_| ()).await.unwrap() else {
            panic!()
        };
        println!("{:?} {:?}", t.elapsed(), lock.holder(&path).await);
        let Acquired::TimedOut(who) =
            lock.acquire(&path, &h("b"), Duration::ZERO, &|h| println!("wait {h:?}")).await.unwrap()
        else {
            panic!()
        };
        println!("{:?} {who:?}", t.elapsed());
        let (hb, print) = (h("b"), |h| println!("wait {h:?}"));
        let (b, r) = tokio::join!(lock.acquire(&path, &hb, Duration::from_secs(5), &print), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            lease.release(true).await
        });
        println!("{:?} {r:?} {:?}", t.elapsed(), lock.holder(&path).await);
        let Acquired::Held(lease) = b.unwrap() else { panic!() };
        lease.release(true).await.unwrap();
        println!("{:?} {:?}", t.elapsed(), lock.holder(&path).await);
        host.close().await.unwrap();
        println!("{:?}", t.elapsed());
    }
}
