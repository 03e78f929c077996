//! What the launcher of several processes says of each: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`.

use std::time::Duration;

use crate::error::{Error, Result};

/// How long a process waits for the others at first, unless `JITQUANT_JOIN_SECONDS` says otherwise.
const JOIN: Duration = Duration::from_secs(120);

/// A process among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub world: usize,
    /// The host of the store.
    pub address: String,
    /// The port of the store.
    pub port: u16,
    /// Whether the launcher serves the store (torchrun's agent may); process 0 does otherwise.
    pub is_served: bool,
    /// What keys begin with, so that a restarted run does not read those of the one before.
    pub attempt: String,
    /// How long to wait for the others to join.
    pub join: Duration,
}

impl Environment {
    /// What this process's variables say; `None` where neither `RANK` nor `WORLD_SIZE` is set, or there is one process.
    ///
    /// # Errors
    /// Where they contradict each other or some are missing; the message says which.
    pub fn read() -> Result<Option<Self>> {
        Self::of(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if variable("RANK").is_none() && variable("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let given = |name: &str, what: &str| {
            variable(name).ok_or_else(|| {
                Error::invalid(format!(
                    "{name} is not set ({what}): one of several processes needs RANK, WORLD_SIZE, MASTER_ADDR and \
                     MASTER_PORT, a single one none of them"
                ))
            })
        };
        let number = |name: &str, what: &str| -> Result<usize> {
            let text = given(name, what)?;
            text.trim().parse().map_err(|_| Error::invalid(format!("{name}={text}: {what}, from 0")))
        };
        let (rank, world) =
            (number("RANK", "this process's number")?, number("WORLD_SIZE", "the number of processes")?);
        if rank >= world {
            return Err(Error::invalid(format!("RANK={rank} with WORLD_SIZE={world}: ranks are 0 to WORLD_SIZE - 1")));
        }
        if world == 1 {
            return Ok(None);
        }
        let port = given("MASTER_PORT", "the port where process 0 serves the store")?;
        let port = port.trim().parse().ok().filter(|port| *port != 0);
        let join = match variable("JITQUANT_JOIN_SECONDS") {
            None => JOIN,
            Some(text) => match text.trim().parse() {
                Ok(seconds @ 1..) => Duration::from_secs(seconds),
                _ => {
                    return Err(Error::invalid(format!(
                        "JITQUANT_JOIN_SECONDS={text}: how long to wait for the other processes, in whole seconds from 1"
                    )));
                }
            },
        };
        Ok(Some(Self {
            rank,
            world,
            address: given("MASTER_ADDR", "the host of process 0")?.trim().to_owned(),
            port: port.ok_or_else(|| Error::invalid("MASTER_PORT: a port is a number from 1 to 65535"))?,
            is_served: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
            attempt: variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned()),
            join,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Environment>, String> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Environment::of(find).map_err(|e| e.to_string())
    }

    #[test]
    fn without_variables_and_alone_there_is_no_group() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")]), Ok(None));
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
    }

    #[test]
    fn all_four_make_a_process_among_others() {
        let set = [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "head"), ("MASTER_PORT", "29500")];
        let plain = read(&set).unwrap().unwrap();
        assert_eq!((plain.rank, plain.world, plain.address.as_str(), plain.port), (1, 4, "head", 29500));
        assert!(!plain.is_served);
        let elastic = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        let under_torchrun = read(&[&set[..], &elastic].concat()).unwrap().unwrap();
        assert!(under_torchrun.is_served && under_torchrun.attempt == "2");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refusal = |variables: &[(&str, &str)]| read(variables).unwrap_err();
        assert!(refusal(&[("RANK", "2")]).contains("WORLD_SIZE is not set"));
        assert!(refusal(&[("WORLD_SIZE", "2")]).contains("RANK is not set"));
        let told = refusal(&[("RANK", "2"), ("WORLD_SIZE", "2")]);
        assert!(told.contains("RANK=2 with WORLD_SIZE=2"), "{told}");
        assert!(refusal(&[("RANK", "-1"), ("WORLD_SIZE", "2")]).contains("RANK=-1"));
        let two = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")];
        assert!(refusal(&two).contains("MASTER_PORT is not set"));
        for port in ["http", "0", "65536"] {
            let told = refusal(&[&two[..], &[("MASTER_PORT", port)]].concat());
            assert!(told.contains("1 to 65535"), "{told}");
        }
        let port = [("MASTER_PORT", "29500")];
        assert!(refusal(&[&two[..2], &port].concat()).contains("MASTER_ADDR is not set"));
        let told = refusal(&[&two[..], &port, &[("JITQUANT_JOIN_SECONDS", "soon")]].concat());
        assert!(told.contains("JITQUANT_JOIN_SECONDS=soon"), "{told}");
    }
}
