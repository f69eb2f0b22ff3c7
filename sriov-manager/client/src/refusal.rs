//! Why a call was refused, beside its words: `ferrule.vf.v1.Refusal` among the details of the status, where every language's
//! gRPC library looks for it.

use prost::Message;
use prost_types::Any;
use tonic::{Code, Status};

use crate::{rpc, v1};

/// Why a call was refused; none: it did not reach a manager, or one of a release before this.
pub fn refusal(status: &Status) -> Option<v1::Refusal> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let refusal = details.iter().find(|detail| detail.type_url == TYPE_URL)?;
    v1::Refusal::decode(&*refusal.value).ok()
}

/// The answer of a manager that refuses.
pub fn refuse(code: Code, message: &str, mut refusal: v1::Refusal) -> Status {
    if refusal.encoded_len() > DETAILS_MAX {
        // The words are in the message as well.
        refusal.reasons.truncate(REASONS_KEPT);
        refusal.reasons.iter_mut().for_each(|reason| reason.text.clear());
    }
    let details = vec![Any { type_url: TYPE_URL.to_owned(), value: refusal.encode_to_vec() }];
    let status = rpc::Status { code: code.into(), message: String::new(), details };
    Status::with_details(code, message, status.encode_to_vec().into())
}

const TYPE_URL: &str = "type.googleapis.com/ferrule.vf.v1.Refusal";
/// HTTP/2 peers take 16 KiB of headers by default, of which the message is one, and these bytes grow by a third.
const DETAILS_MAX: usize = 4096;
const REASONS_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_comes_back_from_its_status_and_fits_into_a_header() {
        let reason = v1::Reason { text: "x".repeat(1000), lease: "a".into(), ..Default::default() };
        let told = v1::Refusal { vf: "0000:02:10.0".into(), reasons: vec![reason; 100], ..Default::default() };
        let status = refuse(Code::FailedPrecondition, "no", told.clone());
        let read = refusal(&status).unwrap();
        assert_eq!((&read.vf, read.reasons.len(), read.reasons[0].lease.as_str()), (&told.vf, REASONS_KEPT, "a"));
        assert!(status.details().len() < DETAILS_MAX);
        assert_eq!(refusal(&Status::not_found("a manager of another kind")), None);
    }
}
