//! Answers keep what their calls have until they were read: a client that asks and does not read would use up the memory of the
//! manager otherwise.
//!
//! A handler puts [`Held`] into the extensions of its response, and [`HoldingAnswers`] lets go of it when the last byte has been
//! written to the client's socket, or the client is gone.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Response, Status};

/// What is kept until an answer was read.
#[derive(Clone)]
struct Held(#[expect(dead_code, reason = "held")] Arc<dyn Any + Send + Sync>);

/// An answer that keeps something until it was read.
pub(super) fn answer<T>(message: T, keeps: impl Any + Send + Sync) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(Held(Arc::new(keeps)));
    response
}

/// A service whose answers keep what they were given by [`answer`].
#[derive(Clone, Debug)]
pub(super) struct HoldingAnswers<S>(pub S);

impl<S: NamedService> NamedService for HoldingAnswers<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for HoldingAnswers<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answering = self.0.call(request);
        Box::pin(async move {
            let mut answer = answering.await?;
            Ok(match answer.extensions_mut().remove::<Held>() {
                Some(held) => answer.map(|body| Body::new(HeldBody { body, held })),
                None => answer,
            })
        })
    }
}

/// A body that keeps something until its last byte was written: it may be handed over long before.
struct HeldBody {
    body: Body,
    held: Held,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |bytes| Bytes::from_owner(HeldBytes { bytes, _held: self.held.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct HeldBytes {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, poll_fn, ready};

    use http_body::Body as _;

    use super::*;

    #[derive(Clone)]
    struct Answering(Held);

    impl Service<http::Request<Body>> for Answering {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            let mut answer = http::Response::new(Body::new("a list".to_owned()));
            answer.extensions_mut().insert(self.0.clone());
            ready(Ok(answer))
        }
    }

    #[tokio::test]
    async fn what_an_answer_keeps_is_let_go_of_with_its_last_byte() {
        let kept = Arc::new(());
        let mut service = HoldingAnswers(Answering(Held(kept.clone())));
        let answer = service.call(http::Request::new(Body::empty())).await.unwrap();
        drop(service);
        let mut body = answer.into_body();
        let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_none());
        drop(body);
        assert_eq!(Arc::strong_count(&kept), 2, "it is in the connection's queue");
        let bytes = frame.into_data().unwrap();
        assert_eq!(&bytes[..], b"a list");
        drop(bytes);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
