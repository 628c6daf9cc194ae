"""What sentences rely on and inventories do not say (places, tiers, data classes): data with sources, and readers."""
