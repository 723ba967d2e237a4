//! Messages of RFC 2136 as bytes, and one TCP connection that carries them, each signed (RFC 8945).

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, UnknownRecordData};
use domain::rdata::Txt;
use domain::rdata::tsig::Time48;
use domain::tsig::{ClientSequence, ClientTransaction, Key, ValidationError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::Value;
use crate::fault::{Fault, FaultKind};

/// A server may take so long for one answer.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) type DnsName = Name<Vec<u8>>;

/// What must hold for an update to happen at all.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    /// There is exactly this one record of its type.
    Exactly(DnsName, Rtype, Vec<u8>),
    /// There is no record of this type.
    Absent(DnsName, Rtype),
    /// There is no record of any type.
    Unused(DnsName),
}

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// All records of a type go.
    Clear(DnsName, Rtype),
    /// One comes.
    Add(DnsName, Rtype, u32, Vec<u8>),
}

/// What a server says of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Done.
    Done,
    /// A condition does not hold; nothing was done.
    Unmet,
}

/// A name, of text that was checked to be one.
pub(super) fn name(text: &str) -> Result<DnsName, Fault> {
    Name::vec_from_str(text).map_err(|error| {
        Fault::new(FaultKind::Invalid, "make a DNS message", format!("{text} is no name that DNS can hold"))
            .caused_by(error)
    })
}

/// The type and content of a record.
pub(super) fn content(value: &Value) -> Result<(Rtype, Vec<u8>), Fault> {
    Ok(match value {
        Value::A(address) => (Rtype::A, octets((*address).into())),
        Value::Aaaa(address) => (Rtype::AAAA, octets((*address).into())),
        Value::Cname(target) => (Rtype::CNAME, name(target)?.as_slice().to_vec()),
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The content of a TXT record, of at most 255 characters.
pub(super) fn txt(text: &str) -> Vec<u8> {
    let bytes = &text.as_bytes()[..text.len().min(255)];
    // The length fits: it was cut.
    [&[u8::try_from(bytes.len()).unwrap_or(u8::MAX)], bytes].concat()
}

type Line = (DnsName, Class, u32, UnknownRecordData<Vec<u8>>);

fn line(name: &DnsName, class: Class, rtype: Rtype, ttl: u32, data: &[u8]) -> Result<Line, Fault> {
    let data = UnknownRecordData::from_octets(rtype, data.to_vec()).map_err(unwritable)?;
    Ok((name.clone(), class, ttl, data))
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault::new(FaultKind::Invalid, "make a DNS message", "").caused_by(error)
}

/// How a condition is written: its class says what is meant.
fn condition(condition: &Condition) -> Result<Line, Fault> {
    match condition {
        Condition::Exactly(name, rtype, data) => line(name, Class::IN, *rtype, 0, data),
        Condition::Absent(name, rtype) => line(name, Class::NONE, *rtype, 0, &[]),
        Condition::Unused(name) => line(name, Class::NONE, Rtype::ANY, 0, &[]),
    }
}

fn edit(edit: &Edit) -> Result<Line, Fault> {
    match edit {
        Edit::Clear(name, rtype) => line(name, Class::ANY, *rtype, 0, &[]),
        Edit::Add(name, rtype, ttl, data) => line(name, Class::IN, *rtype, *ttl, data),
    }
}

/// A connection to the server that has the zone.
pub(super) struct Connection<'a> {
    stream: TcpStream,
    key: &'a Key,
    zone: DnsName,
    server: &'a str,
    operation: &'static str,
}

impl<'a> Connection<'a> {
    pub(super) async fn open(
        server: &'a str,
        zone: &str,
        key: &'a Key,
        operation: &'static str,
    ) -> Result<Self, Fault> {
        let address = if server.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
            format!("[{server}]:53")
        } else if server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
            server.to_owned()
        } else {
            format!("{server}:53")
        };
        let stream = match tokio::time::timeout(LIMIT, TcpStream::connect(&address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let context = format!("the DNS server {server} cannot be reached");
                return Err(Fault::new(FaultKind::Unreachable, operation, context).transient().caused_by(error));
            }
            Err(_) => return Err(late(server, operation)),
        };
        Ok(Self { stream, key, zone: name(zone)?, server, operation })
    }

    fn fault(&self, kind: FaultKind, why: &str) -> Fault {
        Fault::new(kind, self.operation, format!("the DNS server {}: {why}", self.server))
    }

    async fn send(&mut self, message: &[u8]) -> Result<(), Fault> {
        let length = u16::try_from(message.len())
            .map_err(|_| self.fault(FaultKind::Invalid, "these are too many hosts for one update"))?;
        let framed = [&length.to_be_bytes(), message].concat();
        self.within(async |stream: &mut TcpStream| stream.write_all(&framed).await).await
    }

    async fn receive(&mut self) -> Result<Message<Vec<u8>>, Fault> {
        let bytes = self
            .within(async |stream: &mut TcpStream| {
                let length = stream.read_u16().await?;
                let mut bytes = vec![0; usize::from(length)];
                stream.read_exact(&mut bytes).await.map(|_| bytes)
            })
            .await?;
        Message::from_octets(bytes).map_err(|_| self.fault(FaultKind::Failed, "its answer is no DNS message"))
    }

    async fn within<T>(&mut self, work: impl AsyncFnOnce(&mut TcpStream) -> std::io::Result<T>) -> Result<T, Fault> {
        match tokio::time::timeout(LIMIT, work(&mut self.stream)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(self.fault(FaultKind::Unreachable, "the connection was lost").transient().caused_by(error))
            }
            Err(_) => Err(late(self.server, self.operation)),
        }
    }

    /// One update: all of it, or nothing.
    pub(super) async fn update(&mut self, conditions: &[Condition], edits: &[Edit]) -> Result<Said, Fault> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(random()?);
        builder.header_mut().set_opcode(Opcode::UPDATE);
        let mut zone = builder.question();
        zone.push((&self.zone, Rtype::SOA)).map_err(unwritable)?;
        let mut before = zone.answer();
        for wanted in conditions {
            before.push(condition(wanted)?).map_err(unwritable)?;
        }
        let mut changes = before.authority();
        for change in edits {
            changes.push(edit(change)?).map_err(unwritable)?;
        }
        let mut message = changes.additional();
        let transaction = ClientTransaction::request(self.key, &mut message, Time48::now()).map_err(unwritable)?;
        self.send(&message.finish()).await?;
        let mut answer = self.receive().await?;
        let rcode = answer.header().rcode();
        match transaction.answer(&mut answer, Time48::now()) {
            Ok(()) => {}
            // Servers do not sign what they refuse; that it is refused may be believed.
            Err(ValidationError::ServerUnsigned) if rcode != Rcode::NOERROR && !unmet(rcode) => {}
            Err(error) => return Err(self.unsigned(error)),
        }
        match rcode {
            Rcode::NOERROR => Ok(Said::Done),
            rcode if unmet(rcode) => Ok(Said::Unmet),
            rcode => Err(self.refused(rcode)),
        }
    }

    /// All TXT records of the zone.
    pub(super) async fn texts(&mut self) -> Result<Vec<(String, String)>, Fault> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(random()?);
        let mut question = builder.question();
        question.push((&self.zone, Rtype::AXFR)).map_err(unwritable)?;
        let mut message = question.additional();
        let mut sequence = ClientSequence::request(self.key, &mut message, Time48::now()).map_err(unwritable)?;
        self.send(&message.finish()).await?;
        let (mut found, mut ends) = (Vec::new(), 0);
        while ends < 2 {
            let mut answer = self.receive().await?;
            let rcode = answer.header().rcode();
            match sequence.answer(&mut answer, Time48::now()) {
                Ok(()) => {}
                Err(ValidationError::ServerUnsigned) if rcode != Rcode::NOERROR => {}
                // Knot knows no key for what the key may not do.
                Err(ValidationError::ServerBadKey) => {}
                Err(error) => return Err(self.unsigned(error)),
            }
            if rcode != Rcode::NOERROR {
                return Err(match rcode {
                    Rcode::REFUSED | Rcode::NOTAUTH | Rcode::NOTIMP => self
                        .fault(FaultKind::Unsupported, &format!("it does not let the key transfer the zone ({rcode})")),
                    rcode => self.refused(rcode),
                });
            }
            let damaged = |_| self.fault(FaultKind::Failed, "its answer cannot be read");
            let records = answer.answer().map_err(damaged)?;
            // The zone's first record comes again at the end.
            for record in records {
                let record = record.map_err(damaged)?;
                ends += usize::from(record.rtype() == Rtype::SOA);
                if let Ok(Some(text)) = record.to_record::<Txt<_>>() {
                    let bytes: Vec<u8> = text.data().text();
                    found.push((text.owner().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
        }
        sequence.done().map_err(|error| self.unsigned(error))?;
        Ok(found)
    }

    fn unsigned(&self, error: ValidationError) -> Fault {
        let why = match error {
            ValidationError::ServerBadKey | ValidationError::BadKey => {
                "it does not know the key, or not for this ([dns] key_name and algorithm, and the rights that the server gives the key)"
            }
            ValidationError::ServerBadSig => "it has another secret for the key (PREVIEW_DNS_TSIG_KEY)",
            ValidationError::ServerBadTime { .. } | ValidationError::BadTime => {
                "its clock and this machine's differ by more than five minutes"
            }
            _ => "its answer is not signed with the key",
        };
        self.fault(FaultKind::Denied, why).caused_by(error)
    }

    fn refused(&self, rcode: Rcode) -> Fault {
        match rcode {
            Rcode::REFUSED => self.fault(FaultKind::Denied, "it refuses: the key may not update these names (REFUSED)"),
            Rcode::NOTAUTH => self.fault(
                FaultKind::Denied,
                "it does not have the zone, or does not know the key (NOTAUTH); see [dns] server, zone and key_name",
            ),
            Rcode::NOTZONE => self.fault(FaultKind::Invalid, "a host does not lie in the zone (NOTZONE)"),
            Rcode::SERVFAIL => self.fault(FaultKind::Failed, "it has failed (SERVFAIL); its log says why").transient(),
            rcode => self.fault(FaultKind::Failed, &format!("it answers {rcode}")),
        }
    }
}

fn unmet(rcode: Rcode) -> bool {
    matches!(rcode, Rcode::NXDOMAIN | Rcode::YXDOMAIN | Rcode::YXRRSET | Rcode::NXRRSET)
}

fn late(server: &str, operation: &'static str) -> Fault {
    let context = format!("the DNS server {server} did not answer within {} s", LIMIT.as_secs());
    Fault::new(FaultKind::TimedOut, operation, context).transient()
}

fn random() -> Result<u16, Fault> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes)
        .map_err(|error| Fault::new(FaultKind::Failed, "make a DNS message", "no random number").caused_by(error))?;
    Ok(u16::from_be_bytes(bytes))
}
