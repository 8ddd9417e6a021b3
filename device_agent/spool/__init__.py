"""The spool: a bounded store on the disk for what the fleet is to be told."""
