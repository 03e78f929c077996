//! Where the library's messages go.

use std::ffi::{c_char, c_void};
use std::fmt::Write;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::callback::{call_program, refuse_in_callback};
use super::status::{Failure, Outcome, c_text, enter, jq_status};

/// How much a message matters.
pub type jq_log_level = i32;

/// No messages
pub const JQ_LOG_OFF: jq_log_level = 0;
/// Something went wrong that no status tells of
pub const JQ_LOG_ERROR: jq_log_level = 1;
/// Something has no effect, or not the one that was probably meant
pub const JQ_LOG_WARN: jq_log_level = 2;
/// What a user may want to know
pub const JQ_LOG_INFO: jq_log_level = 3;
/// What helps to find a mistake
pub const JQ_LOG_DEBUG: jq_log_level = 4;
/// Everything
pub const JQ_LOG_TRACE: jq_log_level = 5;

/// Takes a message. `target` is the part of the library that it is from; both texts stay for the call of the function.
///
/// It may be called from any thread, from several at once. It calls no function of this library, and must not throw an
/// exception or jump out.
pub type jq_log_sink = Option<
    unsafe extern "C" fn(level: jq_log_level, target: *const c_char, message: *const c_char, user_data: *mut c_void),
>;

struct Sink {
    call: unsafe extern "C" fn(jq_log_level, *const c_char, *const c_char, *mut c_void),
    user_data: *mut c_void,
}

// SAFETY: the header asks the caller for a function and data that any thread may use.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);
static LEVEL: AtomicI32 = AtomicI32::new(JQ_LOG_OFF);

/// Hands messages of `level` and above to `sink`, with `user_data`; null: to nobody, which is how the library starts.
///
/// `sink` and `user_data` stay usable until the call that replaces them has returned. Any thread; not from a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jq_set_log(level: jq_log_level, sink: jq_log_sink, user_data: *mut c_void) -> jq_status {
    enter(|| {
        if !(JQ_LOG_OFF..=JQ_LOG_TRACE).contains(&level) {
            return Err(Failure::argument(format!("level {level}: JQ_LOG_OFF (0) to JQ_LOG_TRACE (5) are accepted")));
        }
        refuse_in_callback()?;
        let level = if sink.is_some() { level } else { JQ_LOG_OFF };
        let sink = sink.map(|call| Sink { call, user_data });
        install()?;
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
        LEVEL.store(level, Ordering::Release);
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    })
}

/// Makes [`ToSink`] the process's receiver of messages, once.
fn install() -> Outcome<()> {
    static INSTALL: Once = Once::new();
    static REFUSED: AtomicI32 = AtomicI32::new(0);
    INSTALL.call_once(|| {
        if tracing::subscriber::set_global_default(ToSink).is_err() {
            REFUSED.store(1, Ordering::Release);
        }
    });
    match REFUSED.load(Ordering::Acquire) {
        0 => Ok(()),
        _ => Err(Failure::argument("this Rust program has a tracing subscriber of its own, which gets the messages")),
    }
}

fn number(level: &Level) -> jq_log_level {
    match *level {
        Level::ERROR => JQ_LOG_ERROR,
        Level::WARN => JQ_LOG_WARN,
        Level::INFO => JQ_LOG_INFO,
        Level::DEBUG => JQ_LOG_DEBUG,
        Level::TRACE => JQ_LOG_TRACE,
    }
}

struct ToSink;

impl Subscriber for ToSink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(metadata.level()) <= LEVEL.load(Ordering::Acquire)
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        let (target, message) = (c_text(event.metadata().target()), c_text(&message.0));
        if let Some(sink) = &*SINK.read().unwrap_or_else(PoisonError::into_inner) {
            let level = number(event.metadata().level());
            // SAFETY: the caller of jq_set_log promised a function that may be called so.
            call_program(|| unsafe { (sink.call)(level, target.as_ptr(), message.as_ptr(), sink.user_data) });
        }
    }

    // Spans are not enabled: there is nothing to keep of them.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The message of an event, and its other fields behind it.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("a String takes everything");
    }
}
