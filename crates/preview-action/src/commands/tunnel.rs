//! A service's port on this machine's loopback address, over the connection that is there anyway.

use std::sync::Arc;

use preview_core::engine::Container;
use preview_core::lifecycle::{self, Client, Error};
use serde_json::json;
use tokio::net::TcpListener;

use super::{Context, close};
use crate::cli::Which;
use crate::output;
use crate::session::Purpose;

impl Context {
    pub(super) async fn tunnel(&self, which: &Which, to: &str, local: Option<u16>) -> Result<u8, Error> {
        let (service, port) = to
            .rsplit_once(':')
            .and_then(|(service, port)| Some((service, port.parse::<u16>().ok().filter(|port| *port > 0)?)))
            .filter(|(service, _)| !service.is_empty())
            .ok_or_else(|| Error::invalid(format!("`{to}` is not SERVICE:PORT, for example db:5432")))?;
        let session = self.session(Purpose::Look)?;
        let target = self.target(&session, which)?;
        let client = session.connect().await?;
        let listener = TcpListener::bind(("127.0.0.1", local.unwrap_or(0))).await;
        let served = match listener {
            Ok(listener) => tokio::select! {
                served = self.serve(&client, &target, service, port, listener) => served,
                () = self.interrupt.fired() => Ok(()),
            },
            Err(error) => {
                Err(Error::invalid(format!("127.0.0.1:{} cannot be listened on: {error}", local.unwrap_or(0))))
            }
        };
        close(&client).await;
        served.map(|()| 0)
    }

    async fn serve(
        &self,
        client: &Client,
        target: &preview_core::project::Target,
        service: &str,
        port: u16,
        listener: TcpListener,
    ) -> Result<(), Error> {
        // Asked once before anything is promised.
        address(client, target, service, port).await?;
        let here = listener.local_addr().map_err(|error| Error::invalid(error.to_string()))?;
        self.console.say(&format!("{here} leads to {service}:{port} of {} until Ctrl-C", target.name));
        if self.json() {
            output::to_stdout(&output::json(&json!({"address": here.to_string(), "service": service, "port": port})));
        } else {
            output::to_stdout(&format!("{here}\n"));
        }
        let client = Arc::new(client.clone());
        loop {
            let Ok((mut near, _)) = listener.accept().await else { continue };
            // The container may have been replaced since the last connection.
            let far = match address(&client, target, service, port).await {
                Ok((ip, port)) => client.host.dial(&ip, port).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            match far {
                Ok(mut far) => {
                    tokio::spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
                Err(error) => self.console.warn(&error.chain()),
            }
        }
    }
}

/// Where the host reaches the service: in the container's network, so that no port needs to be published.
async fn address(
    client: &Client,
    target: &preview_core::project::Target,
    service: &str,
    port: u16,
) -> Result<(String, u16), Error> {
    let containers = lifecycle::log_containers(client, target, Some(service)).await?;
    let running = lifecycle::pick_container(&containers, service);
    let ip = running.and_then(|container: &Container| container.networks.values().next());
    ip.map(|ip| (ip.to_string(), port))
        .ok_or_else(|| Error::NotFound(format!("`{service}` of {} does not run, or has no network", target.name)))
}
