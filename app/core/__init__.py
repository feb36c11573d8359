"""Every decision of Spendgate: pure and synchronous; time, ids and facts are arguments."""
