//! What a thread of the generator sends by and receives at.

use ferrule_endpoints::end::End;
use ferrule_endpoints::virtio::{DriverRx, DriverTx};
use ferrule_ffi::notifier::Notifier;

use crate::generator::{RunError, RxStream, TxStream};
use crate::traffic::Addresses;

/// One side of what is measured, as far as one thread has it.
pub(crate) trait Side: Send {
    /// Queues to send on.
    fn queues(&self) -> usize;

    /// Buffers of a queue to send on, if they stay filled from one frame to the next.
    fn buffers(&self) -> u32;

    /// Before a run: what others left there is dropped, and who has to learn it is told where frames to this side go, whose
    /// addresses are those of what it sends.
    fn prepare(&mut self, _addresses: &Addresses) -> Result<(), RunError> {
        Ok(())
    }

    /// Sends at most `due` frames of a stream on a queue, as far as there is room. How many.
    fn send(
        &mut self,
        queue: usize,
        stream: &mut TxStream,
        due: u32,
        now: u64,
        notifier: &mut Notifier,
    ) -> Result<u32, RunError>;

    /// Sends what was taken and is not under way yet.
    fn flush(&mut self) {}

    /// Takes some of what has arrived. How many frames.
    fn receive(&mut self, rx: &mut RxStream, notifier: &mut Notifier) -> Result<u32, RunError>;
}

impl Side for &mut End {
    fn queues(&self) -> usize {
        End::queues(self)
    }

    fn buffers(&self) -> u32 {
        End::buffers(self)
    }

    #[inline(always)]
    fn send(
        &mut self,
        queue: usize,
        stream: &mut TxStream,
        due: u32,
        now: u64,
        notifier: &mut Notifier,
    ) -> Result<u32, RunError> {
        match self {
            End::Memif(endpoint) => match endpoint.queues.senders.get_mut(queue) {
                Some(sender) => stream.send(sender, due, now, notifier),
                None => Ok(0),
            },
            End::Vhost(frontend) => match frontend.queues.senders.get_mut(queue) {
                Some(DriverTx::Split(ring)) => stream.send(&mut **ring, due, now, notifier),
                Some(DriverTx::Packed(ring)) => stream.send(&mut **ring, due, now, notifier),
                None => Ok(0),
            },
        }
    }

    #[inline(always)]
    fn receive(&mut self, rx: &mut RxStream, notifier: &mut Notifier) -> Result<u32, RunError> {
        let mut received = 0;
        match self {
            End::Memif(endpoint) => {
                for receiver in &mut endpoint.queues.receivers {
                    received += rx.receive(receiver, notifier)?;
                }
            }
            End::Vhost(frontend) => {
                for receiver in &mut frontend.queues.receivers {
                    received += match receiver {
                        DriverRx::Split(ring) => rx.receive(&mut **ring, notifier)?,
                        DriverRx::Packed(ring) => rx.receive(&mut **ring, notifier)?,
                    };
                }
            }
        }
        Ok(received)
    }
}
