//! Calling the next process of a connection.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tonic::{Request, Status};

use super::limits::{MESSAGE_MAX, check_connection};
use crate::policy::check_callee;
use crate::proto::connection::Connection;
use crate::proto::networkservice::NetworkServiceRequest;
use crate::proto::networkservice::network_service_client::NetworkServiceClient;
use crate::trace::{self, CallSpan};
use crate::transport::{Calls, Connection as Channel, KeptConnection, ran_out};

/// The next process, over one connection to it.
#[derive(Clone)]
pub struct NextHop {
    connection: Channel,
    shared: Option<Arc<Shared>>,
}

/// That others go over the connection too.
struct Shared {
    /// Its place among those.
    _place: OwnedSemaphorePermit,
    kept: Arc<KeptConnection>,
}

impl NextHop {
    /// Over this connection, which goes on as long as the mesh's connection does: its end says that the process is gone.
    pub fn new(connection: Channel) -> Self {
        Self { connection, shared: None }
    }

    /// Over a connection of these that others go over too; `None`: as many do as may.
    pub(super) fn shared(connection: &Channel, kept: &Arc<KeptConnection>) -> Option<Self> {
        let shared = Shared { _place: connection.share()?, kept: Arc::clone(kept) };
        Some(Self { connection: connection.clone(), shared: Some(Arc::new(shared)) })
    }

    /// Whether it has a place on a connection of these.
    pub(super) fn is_of(&self, kept: &Arc<KeptConnection>) -> bool {
        self.shared.as_ref().is_some_and(|shared| Arc::ptr_eq(&shared.kept, kept))
    }

    /// Who is called.
    pub fn connection(&self) -> &Channel {
        &self.connection
    }

    /// Asks for a connection, whose id and index are ours, with the files that it names. The answer has the same id and index, and
    /// only tokens that are believed.
    pub async fn request(
        &self,
        message: NetworkServiceRequest,
        files: &[Arc<OwnedFd>],
        limit: Duration,
    ) -> Result<Connection, NotMade> {
        let refused = |status| NotMade { status, made: None };
        let asked = message.connection.as_ref().map(|asked| (asked.id.clone(), index(asked)));
        let (id, own) = asked.ok_or_else(|| refused(Status::internal("a request without a connection")))?;
        self.pass(files).map_err(refused)?;
        let (span, mut request) = (CallSpan::made(trace::REQUEST), with_limit(message, limit));
        if let Some(span) = &span {
            span.inject(request.metadata_mut());
        }
        let answer = within(limit, self.client().request(request)).await.map(tonic::Response::into_inner);
        if let Some(span) = span {
            // What is too large to be kept is too large to wait for a collector.
            if let Ok(answer) = &answer
                && check_connection(answer).is_ok()
            {
                span.note(answer);
            }
            span.end(&answer);
        }
        let answer = answer.map_err(refused)?;
        match self.check(&answer, &id, own) {
            Ok(()) => Ok(answer),
            Err(status) => Err(NotMade { status, made: ours(answer, id, own).map(Box::new) }),
        }
    }

    fn check(&self, answer: &Connection, id: &str, own: usize) -> Result<(), Status> {
        check_connection(answer)?;
        let callee = self.connection.peer().certificate();
        if answer.id != id || index(answer) != own {
            return Err(Status::internal(format!("{} has answered for another connection than {id}", callee.id())));
        }
        let path = answer.path.clone().unwrap_or_default();
        Ok(check_callee(&path, own, callee, SystemTime::now())?)
    }

    /// Closes a connection, whose id and index are ours.
    pub async fn close(&self, connection: Connection, files: &[Arc<OwnedFd>], limit: Duration) -> Result<(), Status> {
        self.pass(files)?;
        let (span, mut request) = (CallSpan::made(trace::CLOSE), with_limit(connection, limit));
        if let Some(span) = &span {
            span.note(request.get_ref());
            span.inject(request.metadata_mut());
        }
        let closed = within(limit, self.client().close(request)).await.map(drop);
        if let Some(span) = span {
            span.end(&closed);
        }
        closed
    }

    fn pass(&self, files: &[Arc<OwnedFd>]) -> Result<(), Status> {
        // Over TCP nothing is passed, and what is named stays where it is.
        let Some(passed) = self.connection.peer().files() else { return Ok(()) };
        let cannot = |error| Status::unavailable(format!("cannot pass a file with the call: {error}"));
        files.iter().try_for_each(|file| passed.send(Arc::clone(file)).map(drop).map_err(cannot))
    }

    fn client(&self) -> NetworkServiceClient<Calls> {
        NetworkServiceClient::new(self.connection.calls()).max_decoding_message_size(MESSAGE_MAX)
    }
}

/// A connection that cannot be used.
#[derive(Clone, Debug)]
pub struct NotMade {
    /// Why.
    pub status: Status,
    /// What the next process has made all the same, and whose answer is not believed: a new one must be closed there.
    pub made: Option<Box<Connection>>,
}

impl From<NotMade> for Status {
    fn from(error: NotMade) -> Self {
        error.status
    }
}

/// What an answer calls the connection, in our place: the ids behind us are known from there only.
fn ours(mut answer: Connection, id: String, own: usize) -> Option<Connection> {
    check_connection(&answer).ok()?;
    answer.id = id;
    answer.path.as_mut()?.index = u32::try_from(own).ok()?;
    Some(answer)
}

fn index(connection: &Connection) -> usize {
    connection.path.as_ref().map_or(0, |path| path.index as usize)
}

fn with_limit<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("the next process has not answered within {limit:?}"));
    timeout(limit, call).await.unwrap_or_else(|_| Err(late())).map_err(ran_out)
}
