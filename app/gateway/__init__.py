"""The data plane: `/v1/*`, from the client's bytes to the provider's and back."""
