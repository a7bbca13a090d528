"""Objectives: (log_ratio [P, K], reward [P, K], weight [P, K]) -> loss [P]. Free functions; beta > 0 in nats.

log_ratio is log pi(y_k|x) - log pi_t(y_k|x), weight sums to 1 in each group, or to 0 in one that costs nothing.
Responses of weight 0 take part in nothing. P(r < r_k): the probability under pi_t that a response has less reward.

log_ratio may also be divided by the length of the response: what is said of it then holds by token. Objectives of
single tokens take log_ratio and weight as [P, K, T], a response's weight on each of its tokens and 0 behind them.
"""
