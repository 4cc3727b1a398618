//! Closed forms: Little's law, M/M/1, M/M/c, M/G/1.
//!
//! Formulae after Kleinrock, "Queueing Systems", volume 1 (1975), chapters 3 and 5. Times are in any unit, rates in one over it.

/// Why a queue has no steady state to tell of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueueError {
    /// More comes than can be served: the queue grows for ever. Utilisation is 1 or more.
    Overloaded { utilisation: f64 },
    /// A rate or time is negative or no number, or there is no server.
    Invalid,
}

impl core::fmt::Display for QueueError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            QueueError::Overloaded { utilisation } => {
                write!(f, "overloaded: more comes than can be served (utilisation {utilisation:.2})")
            }
            QueueError::Invalid => f.write_str("rates and times are positive numbers, and there is a server"),
        }
    }
}

/// Little's law, L = lambda W: how many are in a system to which `rate` come and in which each stays for `time` on average
/// (Little, "A proof for the queuing formula L = lambda W", Operations Research 9, 1961).
pub fn little(rate: f64, time: f64) -> f64 {
    rate * time
}

/// M/M/c: independent arrivals (Poisson), exponential service, `servers` that share one queue. M/M/1 with one of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmc {
    rate: f64,
    service: f64,
    servers: u32,
    /// Probability that somebody who comes has to wait: Erlang C.
    waits: f64,
}

impl Mmc {
    /// Arrivals per unit of time, mean time of service, servers.
    pub fn new(rate: f64, service: f64, servers: u32) -> Result<Mmc, QueueError> {
        let is_valid = rate >= 0.0 && rate.is_finite() && service > 0.0 && service.is_finite() && servers > 0;
        if !is_valid {
            return Err(QueueError::Invalid);
        }
        let offered = rate * service;
        let utilisation = offered / f64::from(servers);
        if utilisation >= 1.0 {
            return Err(QueueError::Overloaded { utilisation });
        }
        Ok(Mmc { rate, service, servers, waits: erlang_c(offered, servers) })
    }
    /// Share of its time in which a server is at work.
    pub fn utilisation(&self) -> f64 {
        self.rate * self.service / f64::from(self.servers)
    }
    /// Erlang C.
    pub fn waits(&self) -> f64 {
        self.waits
    }
    /// W_q = C / (c mu - lambda).
    pub fn mean_wait(&self) -> f64 {
        self.waits / self.spare()
    }
    pub fn mean_in_system(&self) -> f64 {
        self.mean_wait() + self.service
    }
    /// On average, waiting and served, by Little's law.
    pub fn in_system(&self) -> f64 {
        little(self.rate, self.mean_in_system())
    }
    /// The wait that `share` (0.0 to 1.0, below 1) do not exceed: P(W > t) = C e^-(c mu - lambda)t.
    pub fn wait_quantile(&self, share: f64) -> f64 {
        let beyond = 1.0 - share;
        if self.waits <= beyond { 0.0 } else { (self.waits / beyond).ln() / self.spare() }
    }
    /// The time in the system, wait and service, that `share` (below 1) do not exceed. By bisection.
    pub fn quantile(&self, share: f64) -> f64 {
        let (mut low, mut high) = (0.0, self.mean_in_system());
        while self.longer_than(high) > 1.0 - share {
            high *= 2.0;
        }
        for _ in 0..80 {
            let middle = (low + high) / 2.0;
            if self.longer_than(middle) > 1.0 - share { low = middle } else { high = middle }
        }
        high
    }
    /// P(T > t): service is exponential, the wait is 0 or exponential, and one does not know of the other.
    fn longer_than(&self, time: f64) -> f64 {
        let (mu, spare, c) = (1.0 / self.service, self.spare(), self.waits);
        let served = (-mu * time).exp();
        if (spare - mu).abs() < 1e-9 * mu {
            return served * (1.0 + c * mu * time);
        }
        served * (1.0 - c) + c * (spare * served - mu * (-spare * time).exp()) / (spare - mu)
    }
    /// c mu - lambda: how many more could be served.
    fn spare(&self) -> f64 {
        f64::from(self.servers) / self.service - self.rate
    }
}

/// Erlang B: the share that is turned away when `servers` have no queue and `offered` Erlangs come. By the recurrence
/// B(0) = 1, B(n) = a B(n-1) / (n + a B(n-1)), which neither overflows nor cancels (Jagerman, "Some properties of the Erlang
/// loss function", 1974).
pub fn erlang_b(offered: f64, servers: u32) -> f64 {
    (1..=servers).fold(1.0, |blocked, n| offered * blocked / (f64::from(n) + offered * blocked))
}

/// Erlang C: the share that has to wait when there is a queue; `offered` is below `servers`.
pub fn erlang_c(offered: f64, servers: u32) -> f64 {
    let blocked = erlang_b(offered, servers);
    let utilisation = offered / f64::from(servers);
    blocked / (1.0 - utilisation * (1.0 - blocked))
}

/// M/G/1: mean wait of one server whose times of service have this mean and this squared coefficient of variation (variance
/// over the mean's square): W_q = rho s (1 + cv2) / (2 (1 - rho)), Pollaczek and Khinchine.
pub fn mg1_mean_wait(rate: f64, service: f64, cv2: f64) -> Result<f64, QueueError> {
    let is_valid = rate >= 0.0 && service > 0.0 && cv2 >= 0.0 && (rate + service + cv2).is_finite();
    if !is_valid {
        return Err(QueueError::Invalid);
    }
    let utilisation = rate * service;
    if utilisation >= 1.0 {
        return Err(QueueError::Overloaded { utilisation });
    }
    Ok(utilisation * service * (1.0 + cv2) / (2.0 * (1.0 - utilisation)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(value: f64, expected: f64, off: f64) -> bool {
        (value - expected).abs() <= off * expected.abs().max(1e-12)
    }

    #[test]
    fn two_cashiers_and_a_customer_a_minute_take_a_minute_and_a_third() {
        let shop = Mmc::new(1.0, 1.0, 2).unwrap();
        assert!(near(shop.mean_in_system(), 4.0 / 3.0, 1e-12) && near(shop.waits(), 1.0 / 3.0, 1e-12));
        assert!(near(shop.in_system(), 4.0 / 3.0, 1e-12) && shop.utilisation() == 0.5);
        // With one cashier the queue grows for ever.
        assert_eq!(Mmc::new(1.0, 1.0, 1), Err(QueueError::Overloaded { utilisation: 1.0 }));
    }

    /// Kleinrock, volume 1, section 3.2: L = rho / (1 - rho), T = 1 / (mu - lambda), and T is exponential.
    #[test]
    fn one_server_is_as_in_the_textbook() {
        for (load, in_system) in [(0.5, 1.0), (0.9, 9.0), (0.99, 99.0)] {
            let queue = Mmc::new(load, 1.0, 1).unwrap();
            assert!(near(queue.in_system(), in_system, 1e-9) && near(queue.waits(), load, 1e-12));
            assert!(near(queue.mean_in_system(), 1.0 / (1.0 - load), 1e-9));
            assert!(near(queue.quantile(0.99), 100f64.ln() / (1.0 - load), 1e-6));
            assert!(near(queue.wait_quantile(0.999), (load * 1000.0).ln() / (1.0 - load), 1e-9));
        }
        assert_eq!(Mmc::new(0.2, 1.0, 1).unwrap().wait_quantile(0.5), 0.0, "most do not wait");
    }

    /// Tables of the Erlang formulae: Cooper, "Introduction to Queueing Theory" (1981), appendix.
    #[test]
    fn erlangs_formulae_have_the_values_of_the_tables() {
        assert!(near(erlang_b(5.0, 10), 0.018_385, 1e-4));
        assert!(near(erlang_b(7.0, 10), 0.078_741, 1e-4));
        assert!(near(erlang_b(2.0, 2), 0.4, 1e-12) && erlang_b(0.0, 3) == 0.0);
        assert!(near(erlang_c(4.0, 5), 0.554_1, 1e-4));
        assert!(near(erlang_c(7.0, 10), 0.221_7, 1e-3));
        assert!((0.0..1.0).contains(&erlang_c(999.0, 1000)), "large numbers stay numbers");
    }

    #[test]
    fn service_that_does_not_vary_waits_half_as_long() {
        let [even, exponential] = [0.0, 1.0].map(|cv2| mg1_mean_wait(0.8, 1.0, cv2).unwrap());
        assert!(near(even, 2.0, 1e-12) && near(exponential, 4.0, 1e-12));
        assert!(near(exponential, Mmc::new(0.8, 1.0, 1).unwrap().mean_wait(), 1e-12));
        assert!(matches!(mg1_mean_wait(1.0, 2.0, 1.0), Err(QueueError::Overloaded { .. })));
    }

    #[test]
    fn what_is_no_queue_is_refused() {
        for (rate, service, servers) in
            [(-1.0, 1.0, 1), (1.0, 0.0, 1), (1.0, f64::NAN, 1), (f64::INFINITY, 1.0, 1), (1.0, 0.1, 0)]
        {
            assert_eq!(Mmc::new(rate, service, servers), Err(QueueError::Invalid));
        }
    }

    proptest! {
        #[test]
        fn more_load_waits_longer_and_a_server_more_waits_less(
            load in 0.01..0.95f64, more in 0.001..0.04f64, servers in 1u32..40,
        ) {
            let queue = |load: f64, servers: u32, of: u32| Mmc::new(load * f64::from(of), 1.0, servers).unwrap();
            let (less, more) = (queue(load, servers, servers), queue(load + more, servers, servers));
            prop_assert!(less.mean_wait() <= more.mean_wait());
            prop_assert!(less.quantile(0.99) <= more.quantile(0.99) * (1.0 + 1e-9));
            prop_assert!(queue(load, servers + 1, servers).mean_wait() <= less.mean_wait());
        }

        #[test]
        fn figures_are_positive_numbers_and_percentiles_are_in_order(
            load in 0.0..0.999f64, service in 1e-6..1e6f64, servers in 1u32..100,
        ) {
            let queue = Mmc::new(load * f64::from(servers) / service, service, servers).unwrap();
            let [p50, p99] = [0.5, 0.99].map(|share| queue.quantile(share));
            prop_assert!(p50 <= p99 && p50 > 0.0 && p99.is_finite() && queue.mean_wait() >= 0.0);
            prop_assert!(queue.wait_quantile(0.99) <= p99);
            prop_assert!((queue.in_system() - little(queue.rate, queue.mean_in_system())).abs() < 1e-9);
        }
    }
}
