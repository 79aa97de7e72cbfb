"""What the subcommands of `headrace` do, one module each; `services.console.main` declares them."""
