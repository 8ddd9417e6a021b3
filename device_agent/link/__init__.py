"""The device's MQTT session with its fleet: what it hears, says and sends."""
