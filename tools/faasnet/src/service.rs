//! What systemd is told of a daemon (sd_notify(3)): that it serves, that it stops, that it still lives. Outside of a unit nothing happens.

use sd_notify::NotifyState;

/// Says that the daemon serves, and from now on, as often as the unit's `WatchdogSec` asks for, that its runtime still runs.
pub fn ready() {
    tell(&[NotifyState::Ready]);
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else { return };
    tokio::spawn(async move {
        // Half of it, as sd_watchdog_enabled(3) advises.
        let mut beat = tokio::time::interval(patience / 2);
        loop {
            beat.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

/// Says that the daemon has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("systemd cannot be told {state:?}: {error}");
    }
}
