"""How the agent is reached: sockets, who may call, and what one connection may take."""
