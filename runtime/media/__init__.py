"""Pictures and video: from what a user gives to patches, as the reference's processors make them."""
