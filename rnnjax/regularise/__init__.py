"""Regularisers: dropout in its recurrent forms, zoneout, noise, weight drop, penalties. Every draw has a key."""
